"""The rows that a command reads: a data set by name or folder, or what the task's own options name."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download

from vision_rl.cli.arguments import DataArguments


CATEGORIES_FILE = "categories.json"  # of a prepared data set: COCO's list of them, with ids
_ADVICE = re.compile(r'\b(on_bad_row|follow_symlinks|frame)="?(\w+)"?')
_OPTION_OF = {"on_bad_row": "on_bad_annotation"}
SPLITS = ("train", "validation", "test")  # of what a task's own options name


def load_rows(task: Any, data: DataArguments, options: Any, split: str) -> Any:
    """The rows of "train", "validation" or "test"; None where nothing names any.

    Raises:
        ValueError: for a data set that lacks the split, with those that it has.
    """
    train = split == "train"
    if data.dataset_name is None:
        rows = _of_task(task, options, split)
    else:
        name = data.dataset_train_split if train else data.dataset_test_split
        rows = _of(data, name, "the splits to read by dataset_train_split and dataset_test_split.", train)
    return _first(rows, data.max_train_rows if train else data.max_eval_rows)


def _of_task(task: Any, options: Any, split: str) -> Any:
    """The rows that a task loads; what its loaders advise as arguments of theirs is told as the options of the command."""
    try:
        return task.load_data(options, split)
    except (FileNotFoundError, ValueError) as error:
        told = _ADVICE.sub(lambda advice: _as_option(advice, options), str(error))
        if told == str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(told) from error


def _as_option(advice: re.Match, options: Any) -> str:
    name = _OPTION_OF.get(advice[1], advice[1])
    return f"--{name} {advice[2].lower()}" if hasattr(options, name) else advice[0]


def _first(rows: Any, count: int | None) -> Any:
    if rows is None or count is None:
        return rows
    return (
        rows.take(count) if isinstance(rows, datasets.IterableDataset) else rows.select(range(min(count, len(rows))))
    )


def require(rows: Any, what: str, data: DataArguments, task: Any) -> Any:
    """The rows, or an error that says which options would name some."""
    if rows is not None:
        return rows
    folders = [name for name in vars(task.Options()) if name.endswith(("_dir", "_file")) or name == "scenes"]
    raise ValueError(
        f"There is no data {what}: give dataset_name, or the task's own options "
        f"({', '.join(folders) or 'those that its load_data reads'})."
    )


def _of(data: DataArguments, split: str, to_name: str, train: bool) -> Any:
    splits = splits_of(data, streaming=train and data.dataset_streaming)
    if split not in splits:
        held_out = (
            " Without a split to evaluate on, make one (train_test_split of datasets), or set eval_strategy to no and "
            "eval_on_start to false."
        )
        raise ValueError(
            f"{data.dataset_name} has no split {split!r}; it has {', '.join(map(str, splits))}. Name "
            f"{to_name}{held_out if set(splits) == {data.dataset_train_split} else ''}"
        )
    return splits[split]


def require_one_source(data: DataArguments, options: Any) -> None:
    """The rows are a data set, or scenes, or what folders and files of the task's own options hold.

    Raises:
        ValueError: where two are given, of which only one could be read.
    """
    default = type(options)()
    named = [
        option.name
        for option in fields(options)
        if (option.name == "scenes" or option.name.endswith(("_dir", "annotation_file", "karpathy_file")))
        and getattr(options, option.name) != getattr(default, option.name)
    ]
    if data.dataset_name is not None:
        source, others = "dataset_name", named
    elif "scenes" in named:
        source, others = "scenes", [name for name in named if name != "scenes"]
    elif "karpathy_file" in named:
        source, others = "karpathy_file", [name for name in named if name not in ("karpathy_file", "images_dir")]
    else:
        return
    if others:
        has_ids = source == "dataset_name" and "annotation_file" in others and hasattr(options, "categories_file")
        ids = " COCO's category ids can be read from categories_file." if has_ids else ""
        switched_off = source if source != "dataset_name" else others[0]
        raise ValueError(
            f"{source} names the data, and so does {', '.join(others)}, but only one can be read: leave out the other "
            f"(in a config, {switched_off}: null).{ids}"
        )


def under_usual_names(rows: Any, target_columns: dict[str, str] | str | None, image_column: str = "image") -> Any:
    """The rows with `image_column` renamed to `image`, and `target_columns` to the processor's keywords; None stays None.

    A column that has such a name already makes room for the one that is to have it.
    """
    targets = json.loads(target_columns) if isinstance(target_columns, str) else target_columns or {}
    names = {image_column: "image", **{column: keyword for keyword, column in targets.items()}}
    renamed = {column: name for column, name in names.items() if column != name}
    if not renamed or rows is None:
        return rows
    replaced = [name for name in renamed.values() if name in (rows.column_names or ()) and name not in renamed]
    return rows.remove_columns(replaced).rename_columns(renamed)


def split_to_look_at(data: DataArguments, split: str | None) -> str:
    """The split that a command which looks at a model reads: `split` if it is given.

    Raises:
        ValueError: for one that no task has, where the task's own options name the data.
    """
    if data.dataset_name is not None:
        return data.dataset_test_split if split is None else split
    if split not in (None, *SPLITS):
        raise ValueError(
            f"split must be one of {', '.join(SPLITS)} without dataset_name, whose splits may have other names; it is "
            f"{split!r}."
        )
    return "validation" if split is None else split


def rows_to_look_at(given: Any, split: str | None) -> Any:
    """The rows of a split for a command that looks at a model, under the usual names; None where nothing names any."""
    args, data = given.own
    name = split_to_look_at(data, split)
    if data.dataset_name is None:
        trained_on = name == "train"
        rows = _of_task(given.task, given.options, name)
    else:
        trained_on = name == data.dataset_train_split
        rows = _of(data, name, "the one to read by split, or by dataset_test_split.", False)
    rows = _first(_first(rows, data.max_train_rows if trained_on else None), data.max_eval_rows)
    return under_usual_names(rows, args.target_columns, args.image_column)


def training_rows(given: Any) -> Any:
    """The rows that a model was trained on, for a command that looks at it, as `rows_to_look_at` gives those of a split."""
    args, data = given.own
    rows = load_rows(given.task, data, given.options, "train")
    return under_usual_names(rows, args.target_columns, args.image_column)


def splits_of(data: DataArguments, streaming: bool = False) -> Any:
    """All splits of a data set, by name."""
    name = str(data.dataset_name)
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # of save_to_disk
        loaded = datasets.load_from_disk(name)
        return loaded if isinstance(loaded, datasets.DatasetDict) else {data.dataset_train_split: loaded}
    if folder.is_absolute() and not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {name} with a data set.")
    return datasets.load_dataset(name, data.dataset_config, streaming=streaming)


def with_categories(data: DataArguments, options: Any) -> Any:
    """The task's options with the categories that `vision-rl prepare` has put beside the rows."""
    if data.dataset_name is None or getattr(options, "categories_file", "") is not None:
        return options
    path = Path(data.dataset_name) / CATEGORIES_FILE
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(data.dataset_name, CATEGORIES_FILE, repo_type="dataset"))
        except (OSError, ValueError):  # another data set, or no network: the options or the rows must tell
            return options
    return replace(options, categories_file=str(path)) if path.is_file() else options


def cheap_columns(rows: datasets.Dataset, processor: Any) -> datasets.Dataset:
    """The rows without images and targets: what results need of each, such as `image_id`."""
    heavy = {*processor.target_columns, "image", "codes"}
    pictures = {name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)}
    return rows.remove_columns([name for name in rows.column_names if name in heavy | pictures])
