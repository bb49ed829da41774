"""What `vision-rl prepare` looks at before it writes: the targets of all rows, as the trainers do, and every picture."""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import datasets

from vision_rl.cli import building
from vision_rl.cli.arguments import ModelArguments
from vision_rl.columns import UnusableRows
from vision_rl.pictures import rgb_image
from vision_rl.processing import VisionProcessor
from vision_rl.tasks.ocr.tokenizer import character_tokenizer
from vision_rl.trainer import checks


logger = logging.getLogger(__name__)

_PICTURES_PER_PROCESS = 1000  # fewer are read in this one


def checking_processor(task: Any, options: Any, rows: datasets.Dataset) -> VisionProcessor:
    """The processor of a new model of the task, which knows what rows must have.

    A tokenizer that nobody has named, and that cannot be loaded here, is not needed for that: another one stands for it.
    """
    images = building.image_processor(ModelArguments())
    try:
        return task.make_processor(options, images, rows)
    except OSError:
        if getattr(options, "tokenizer", "") is not None:
            raise
        others = {"tokenizer": character_tokenizer("a"), "vocab_size": None}
        known = {option.name for option in fields(options)}
        return task.make_processor(
            replace(options, **{name: value for name, value in others.items() if name in known}), images, rows
        )


def check_form(split: str, rows: datasets.Dataset, processor: VisionProcessor) -> None:
    """There are rows with a column `image`. A warning tells what they lack of what is learned."""
    checks.check_dataset(split, rows)
    checks.check_columns(split, rows.column_names, ["image"])
    missing = [name for name in processor.target_columns if name not in rows.column_names]
    if missing:
        logger.warning(
            "%s has no column %s, of which labels and references are made. If it has another name, give target_columns.",
            split,
            ", ".join(f"`{name}`" for name in missing),
        )


def usable_rows(
    split: str, rows: datasets.Dataset, processor: VisionProcessor, on_bad: str | None
) -> datasets.Dataset:
    """The rows whose pictures can be read and whose targets can be learned from.

    Args:
        split: its name, for messages.
        rows: under the usual names of columns.
        processor: of the task.
        on_bad: the task's `on_bad_annotation`: "skip" leaves out the rows that cannot be used; None: it has none.

    Raises:
        ValueError: for rows that cannot be used, all together, unless they are left out; and for what is wrong with all.
    """
    names = [name for name in ("image", *processor.target_columns) if name in rows.column_names]
    rows = _with_readable_pictures(split, rows, names, processor, on_bad)
    while True:
        try:
            checks.check_rows(split, rows, processor, {name: name for name in names}, None)
            return rows
        except ValueError as error:
            rows = _without(rows, error.__cause__, str(error), on_bad)


def _with_readable_pictures(
    split: str, rows: datasets.Dataset, needed: Sequence[str], processor: VisionProcessor, on_bad: str | None
) -> datasets.Dataset:
    """Opens each picture once, in all columns that have some; in those that are needed none may be missing.

    Of each row the processor then checks what its pictures tell of its other targets.
    """
    rows = rows.with_format(None)
    features = {name: it for name, it in rows.features.items() if name in needed or isinstance(it, datasets.Image)}
    stored = rows.select_columns(list(features))
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):  # opened below, where a broken one stops nothing
            stored = stored.cast_column(name, datasets.Image(decode=False))
    processes = min(os.cpu_count() or 1, len(rows) // _PICTURES_PER_PROCESS)
    looked = stored.map(
        _look,
        fn_kwargs={"features": features, "needed": needed, "processor": processor},
        with_indices=True,
        remove_columns=list(features),
        features=datasets.Features({"fault": datasets.Value("string")}),
        num_proc=processes if processes > 1 else None,
        keep_in_memory=True,
        load_from_cache_file=False,  # a file may have been mended since
        desc=f"Reading the pictures of {split}",
    )
    faults = {row: fault for row, fault in enumerate(looked["fault"][:]) if fault is not None}
    if not faults:
        return rows
    error = UnusableRows(list(faults), faults[min(faults)], len(rows))
    return _without(rows, error, f"{split}: {error}", on_bad)


def _look(
    row: dict[str, Any], index: int, features: dict[str, Any], needed: Sequence[str], processor: VisionProcessor
) -> dict[str, str | None]:
    """What is wrong with the first picture of a row that cannot be read, or with what the row says of it."""
    opened = dict(row)
    for name, feature in features.items():
        value = row[name]
        if not (name == "image" or isinstance(feature, datasets.Image)) or (value is None and name not in needed):
            continue
        try:
            if value is None:
                raise ValueError("there is no picture")
            opened[name] = feature.decode_example(value) if isinstance(feature, datasets.Image) else value
            if name == "image":
                rgb_image(opened[name], index)
        except Exception as error:  # Pillow's readers of broken files raise whatever they stumble over
            path = value.get("path") if isinstance(value, dict) else None
            return {"fault": f"column `{name}`{f' ({path})' if path else ''}: {error.__cause__ or error}"}
    try:
        processor.check_opened([(index, opened)], {name: name for name in needed}, 1)
    except UnusableRows as error:
        return {"fault": error.fault}
    return {"fault": None}


def _without(rows: datasets.Dataset, error: Any, told: str, on_bad: str | None) -> datasets.Dataset:
    """The rows but for those that the error is about, if they may be left out and any others are there."""
    bad = error.rows if isinstance(error, UnusableRows) else ()
    if on_bad == "skip" and 0 < len(bad) < len(rows):
        logger.warning("%s They are left out.", told)
        return rows.select(sorted(set(range(len(rows))) - set(bad)))
    hint = " Correct them, or leave them out with --on_bad_annotation skip." if bad and on_bad == "raise" else ""
    raise ValueError(told + hint) from error.__cause__
