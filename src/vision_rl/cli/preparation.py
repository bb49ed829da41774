"""`vision-rl prepare`: any source as a data set folder, images inside, in the form of the Hub."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.table import embed_table_storage
from huggingface_hub import HfApi

from vision_rl.cli.data import CATEGORIES_FILE, load_rows, splits_of
from vision_rl.cli.reading import Read


UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
SPLITS = ("train", "validation", "test")


def prepare(given: Read) -> Callable[[], None]:
    args, data = given.own
    if args.output_dir is None:
        raise ValueError("vision-rl prepare needs --output_dir: the folder that it will make.")
    folder = Path(args.output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give the data set a folder of its own.")
    size = _bytes(args.shard_size)
    if data.dataset_name is None:
        found = {split: load_rows(given.task, data, given.options, split) for split in SPLITS}
        if found["test"] is not None and _same(found["test"], found["validation"]):
            found["test"] = None  # of a task that has two sources
    else:
        found = dict(splits_of(data))
    rows = {split: each for split, each in found.items() if each is not None}
    if not rows:
        raise ValueError("There is no data to prepare: give the task's own options, or dataset_name.")
    return lambda: _prepare(given, rows, folder, size)


def _prepare(given: Read, rows: dict[str, datasets.Dataset], folder: Path, size: float) -> None:
    args = given.own[0]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, of_split in rows.items():
        count = write_shards(of_split, folder / "data", split, size)
        print(f"{split}: {len(of_split)} rows in {count} files", flush=True)
    annotations = getattr(given.options, "annotation_file", None)
    if annotations is not None:
        categories = json.loads(Path(annotations).read_text()).get("categories")
        if categories:
            (folder / CATEGORIES_FILE).write_text(json.dumps({"categories": categories}))
    (folder / "README.md").write_text(card(folder.name, given, rows))
    print(f"Written to {folder}: read it with `--dataset_name {folder}`, or with `datasets.load_dataset`.")
    if args.push_to_hub is not None:
        api = HfApi()
        api.create_repo(args.push_to_hub, repo_type="dataset", private=args.private, exist_ok=True)
        api.upload_folder(repo_id=args.push_to_hub, repo_type="dataset", folder_path=folder)
        print(f"Uploaded to https://huggingface.co/datasets/{args.push_to_hub}.")


def write_shards(rows: datasets.Dataset, folder: Path, split: str, size: float) -> int:
    """Write the rows as Parquet files of about `size` bytes, the images' own bytes inside; returns how many files.

    The features travel in the files: class names, images, types.
    """
    first = _embedded(rows.select(range(min(64, len(rows)))))
    per_row = first.data.nbytes / max(1, len(first))
    count = max(1, math.ceil(per_row * len(rows) / size))
    for index in range(count):
        shard = _embedded(rows.shard(count, index, contiguous=True))
        path = folder / f"{split}-{index:05d}-of-{count:05d}.parquet"
        shard.to_parquet(path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # whole or not there
    return count


def _embedded(rows: datasets.Dataset) -> datasets.Dataset:
    arrow = rows.with_format("arrow")
    embedded = arrow.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
    return embedded.with_format(None)


def card(name: str, given: Read, rows: dict[str, datasets.Dataset]) -> str:
    """The README: what the Hub reads on top, then source, licence, counts and columns."""
    args = given.own[0]
    task = given.task.__name__.rpartition(".")[2]
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows]
    head: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": files}], "tags": ["vision_rl", task]}
    if args.license is not None:
        head = {"license": args.license, **head}
    features = next(iter(rows.values())).features
    source = args.source or given.own[1].dataset_name or _folders(given.options) or "generated"
    lines = [
        f"# {name}",
        "",
        f"Rows for {task}, made by `vision-rl prepare`.",
        "",
        f"* Source: {source}",
        f"* License: {args.license or 'not stated: that of the source'}",
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| {split} | {len(of_split)} |" for split, of_split in rows.items()),
        "",
        "| column | type |",
        "|---|---|",
        *(f"| `{column}` | {_shown(feature)} |" for column, feature in features.items()),
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _shown(feature: Any) -> str:
    text = str(feature)
    return f"`{text if len(text) < 100 else text[:97] + '...'}`"


def _folders(options: Any) -> str:
    names = [name for name in vars(options) if name.endswith(("_dir", "_file"))]
    return ", ".join(Path(value).name for name in names if (value := getattr(options, name)) is not None)


def _bytes(size: str) -> float:
    number, unit = size[:-2], size[-2:].upper()
    if unit not in UNITS or not number.replace(".", "", 1).isdigit():
        raise ValueError(f"shard_size must be a number with one of {', '.join(UNITS)}, such as 500MB; it is {size!r}.")
    return float(number) * UNITS[unit]


def _same(a: datasets.Dataset, b: datasets.Dataset | None) -> bool:
    return b is not None and a._fingerprint == b._fingerprint
