"""The rows that a command reads: a data set by name or folder, or what the task's own options name."""

from pathlib import Path
from typing import Any

import datasets

from vision_rl.cli.arguments import DataArguments


def load_rows(task: Any, data: DataArguments, options: Any, split: str) -> datasets.Dataset | None:
    """The rows of "train", "validation" or "test"; None where nothing names any.

    Raises:
        ValueError: for a data set that lacks the split, with those that it has.
    """
    count = data.max_train_rows if split == "train" else data.max_eval_rows
    if data.dataset_name is None:
        rows = task.load_data(options, split)
    else:
        rows = _of(data, data.dataset_train_split if split == "train" else data.dataset_test_split)
    return rows if rows is None or count is None else rows.select(range(min(count, len(rows))))


def require(rows: Any, what: str, data: DataArguments, task: Any) -> Any:
    """The rows, or an error that says which options would name some."""
    if rows is not None:
        return rows
    folders = [name for name in vars(task.Options()) if name.endswith(("_dir", "_file")) or name == "scenes"]
    raise ValueError(
        f"There is no data {what}: give dataset_name, or of the task's own options "
        f"{', '.join(folders) or 'those that its load_data reads'}."
    )


def _of(data: DataArguments, split: str) -> datasets.Dataset:
    name = str(data.dataset_name)
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # of save_to_disk
        loaded = datasets.load_from_disk(name)
        splits = loaded if isinstance(loaded, datasets.DatasetDict) else {data.dataset_train_split: loaded}
    else:
        if folder.is_absolute() and not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {name} with a data set.")
        splits = datasets.load_dataset(name, data.dataset_config)
    if split not in splits:
        raise ValueError(
            f"{name} has no split {split!r}; it has {', '.join(map(str, splits))}. dataset_train_split and "
            "dataset_test_split name what is read."
        )
    return splits[split]


def cheap_columns(rows: datasets.Dataset, processor: Any) -> datasets.Dataset:
    """The rows without images and targets: what results need of each, such as `image_id`."""
    heavy = {*processor.target_columns, "image", "codes"}
    pictures = {name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)}
    return rows.remove_columns([name for name in rows.column_names if name in heavy | pictures])
