"""`vision-rl prepare`: any source as a data set folder, images inside, in the form of the Hub."""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.table import embed_table_storage
from huggingface_hub import HfApi

from vision_rl.cli.data import CATEGORIES_FILE, SPLITS, load_rows, splits_of, under_usual_names
from vision_rl.cli.reading import Read
from vision_rl.cli.row_checks import check_form, checking_processor, usable_rows
from vision_rl.data.coco_categories import category_files
from vision_rl.data.json_entries import read_entries


UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
ASIDE = ".preparing"  # what is being written; `datasets` reads no folder that begins with a dot
CARD = "README.md"


def prepare(given: Read) -> Callable[[], None]:
    args, data = given.own
    if args.output_dir is None:
        raise ValueError("vision-rl prepare needs --output_dir: the folder that it will make.")
    if data.dataset_streaming:
        raise ValueError(
            "vision-rl prepare writes rows that it has counted, which a stream's are not: leave out dataset_streaming."
        )
    folder = Path(args.output_dir)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    was_killed = ASIDE in there and "data" not in there
    if there and not was_killed:
        raise ValueError(f"{folder} is not empty: give the data set a folder of its own.")
    size = _bytes(args.shard_size)
    rows = _rows(given)
    if not rows:
        raise ValueError("There is no data to prepare: give the task's own options, or dataset_name.")
    processor = checking_processor(given.task, given.options, next(iter(rows.values())))
    for split, each in rows.items():
        check_form(split, each, processor)
    rows = {split: _with_pictures(split, each) for split, each in rows.items()}
    categories = _categories(given.options, processor)
    folder.mkdir(parents=True, exist_ok=True)
    repository = _repository(args)
    return lambda: _prepare(given, rows, processor, categories, folder, size, repository)


def _rows(given: Read) -> dict[str, datasets.Dataset]:
    """The rows of each split under the usual names of columns, with the limits and splits that the data options name.

    Of a data set all splits keep their names; if some are named, they alone are taken, as what the other commands read
    without being told: train and validation.
    """
    args, data = given.own
    if data.dataset_name is None:
        found = {split: load_rows(given.task, data, given.options, split) for split in SPLITS}
        if found["test"] is not None and _same(found["test"], found["validation"]):
            found["test"] = None  # of a task that has two sources
    else:
        named = [name for name in ("dataset_train_split", "dataset_test_split") if name in given.given]
        there = splits_of(data)
        sources = {split: split for split in there}
        if named:
            both = {"train": data.dataset_train_split, "validation": data.dataset_test_split}
            asked = [getattr(data, name) for name in named]
            sources = {split: source for split, source in both.items() if source in asked or source in there}
        found = {
            split: load_rows(given.task, replace(data, dataset_train_split=source), given.options, "train")
            if split == "train"
            else load_rows(given.task, replace(data, dataset_test_split=source), given.options, "validation")
            for split, source in sources.items()
        }
    return {
        split: under_usual_names(each, args.target_columns, args.image_column)
        for split, each in found.items()
        if each is not None
    }


def _with_pictures(split: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with an `image` that is written as a picture: of a path the file, not its name."""
    feature = rows.features["image"]
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
        return rows.cast_column("image", datasets.Image())
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"{split}: the column `image` holds {_in_a_line(feature)} vision-rl prepare writes pictures: give paths, or make them "
            "with cast_column('image', datasets.Image())."
        )
    return rows


def _repository(args: Any) -> str | None:
    """The data set on the Hub that is pushed to, which is made before any row is written."""
    if args.push_to_hub is None:
        return None
    try:
        made = HfApi().create_repo(args.push_to_hub, repo_type="dataset", private=args.private, exist_ok=True)
    except Exception as error:  # of the network, of the Hub, of the name
        raise OSError(
            f"The data set {args.push_to_hub} cannot be made on the Hub: {_in_a_line(error)} Log in with `hf auth login`, or "
            "leave out push_to_hub."
        ) from error
    return made.repo_id


def _prepare(
    given: Read,
    rows: dict[str, datasets.Dataset],
    processor: Any,
    categories: list[dict[str, Any]],
    folder: Path,
    size: float,
    repository: str | None,
) -> None:
    on_bad = getattr(given.options, "on_bad_annotation", None)
    rows = {split: usable_rows(split, each, processor, on_bad) for split, each in rows.items()}
    with _written_aside(folder) as aside:
        for split, of_split in rows.items():
            count = write_shards(of_split, aside / "data", split, size)
            print(f"{split}: {len(of_split)} rows in {count} files", flush=True)
        if categories:
            (aside / CATEGORIES_FILE).write_text(json.dumps({"categories": categories}))
        (aside / CARD).write_text(card(folder.resolve().name, given, rows))
    print(f"Written to {folder}: read it with `--dataset_name {folder}`, or with `datasets.load_dataset`.")
    if repository is not None:
        _upload(folder, repository)


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A folder aside, whose files take their places when all are written, the rows last: until then there is no data set."""
    aside, files = folder / ASIDE, (CATEGORIES_FILE, CARD)
    if aside.exists():  # of a `prepare` that was killed
        shutil.rmtree(aside)
        for name in files:
            (folder / name).unlink(missing_ok=True)
    try:
        (aside / "data").mkdir(parents=True)
        yield aside
        for name in (*files, "data"):
            if (aside / name).exists():
                (aside / name).rename(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _upload(folder: Path, repository: str) -> None:
    try:
        HfApi().upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)
    except Exception as error:  # whatever it was, the rows are there
        command = shlex.join(["hf", "upload", repository, str(folder), ".", "--repo-type", "dataset"])
        raise OSError(
            f"The data set in {folder} is whole, but could not be uploaded: {_in_a_line(error)} Later this uploads it: {command}"
        ) from error
    print(f"Uploaded to https://huggingface.co/datasets/{repository}.")


def _in_a_line(error: Any) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _categories(options: Any, processor: Any) -> list[dict[str, Any]]:
    """COCO's list of the categories with their ids: of the file that names them, or those that the task knows itself."""
    known = getattr(processor, "categories", None) or []
    files = category_files(options) if known else []  # a file of captions has none
    if not files:
        return known if all(isinstance(category, dict) for category in known) else []
    categories: list[dict[str, Any]] = []
    read_entries(files[0], "COCO's categories", {"categories": categories.append})
    return categories


def write_shards(rows: datasets.Dataset, folder: Path, split: str, size: float) -> int:
    """Write the rows as Parquet files of about `size` bytes, the images' own bytes inside; returns how many files.

    The features travel in the files: class names, images, types.
    """
    first = _embedded(rows.select(range(min(64, len(rows)))))
    per_row = first.data.nbytes / max(1, len(first))
    count = max(1, math.ceil(per_row * len(rows) / size))
    for index in range(count):
        shard = _embedded(rows.shard(count, index, contiguous=True))
        shard.to_parquet(folder / f"{split}-{index:05d}-of-{count:05d}.parquet")
    return count


def _embedded(rows: datasets.Dataset) -> datasets.Dataset:
    arrow = rows.with_format("arrow")
    embedded = arrow.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
    return embedded.with_format(None)


def card(name: str, given: Read, rows: dict[str, datasets.Dataset]) -> str:
    """The README: what the Hub reads on top, then source, licence, counts and columns.

    The Hub and `datasets` find the splits by the files' names. Were they listed here, `datasets` 5 would take any folder of the
    same name and list for the one that it has in its cache.
    """
    args = given.own[0]
    task = given.task.__name__.rpartition(".")[2]
    head: dict[str, Any] = {"tags": ["vision_rl", task]}
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
