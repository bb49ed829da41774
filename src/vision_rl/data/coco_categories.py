"""Read the `categories` of a COCO file."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from vision_rl.data.coco_images import shortened
from vision_rl.data.fields import BadField, as_id, as_text, read_field
from vision_rl.data.json_entries import read_entries
from vision_rl.data.stored_rows import Rows, stored_rows


def read_categories(annotation_file: str | Path, entries: list[Any] | None = None) -> list[dict[str, Any]]:
    """Return the categories of a file in the order of their ids: dicts with `id`, `name`, and `isthing` if present.

    The categories are kept on disk, so that a large file is read for them only once. `entries` are the entries of the
    list `categories`, if the caller has read the file already.

    Raises:
        ValueError: for a category without an id or a name, for two categories of one id, and for ids of which some are
            texts and others numbers.
    """

    def make() -> Rows:
        found: list[Any] = [] if entries is None else entries
        if entries is None:
            read_entries(annotation_file, "COCO's categories", {"categories": found.append})
        checked = [json.dumps(_category(entry, annotation_file)) for entry in found]
        return Rows(
            {"category": pa.array(checked, pa.string())}, datasets.Features({"category": datasets.Value("string")})
        )

    rows = stored_rows("categories", annotation_file, {}, make)
    categories = [json.loads(text) for text in rows["category"]]
    ids = [category["id"] for category in categories]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"{annotation_file} has {len(ids) - len(set(ids))} categories with the id of another category."
        )
    if len({isinstance(value, str) for value in ids}) > 1:
        raise ValueError(f"{annotation_file} has both texts and numbers as category ids: {ids}.")
    return sorted(categories, key=lambda category: category["id"])


def distinct_names(categories: list[dict[str, Any]], annotation_file: str | Path) -> list[str]:
    """Return the categories' names, or raise `ValueError` if two categories have the same."""
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{annotation_file} has two categories called {', '.join(map(repr, twice))}: rename one.")
    return names


def _category(entry: Any, annotation_file: str | Path) -> dict[str, Any]:
    try:
        if not isinstance(entry, dict):
            raise BadField("no fields")
        named = {"id": read_field(entry, "id", as_id), "name": read_field(entry, "name", as_text)}
    except BadField as error:
        raise ValueError(f"{annotation_file}: the category {shortened(entry)} has {error}.") from error
    return named | ({"isthing": entry["isthing"]} if "isthing" in entry else {})


def category_files(options: Any) -> list[str]:
    """Which of the files that a task's options name have categories: `categories_file` first, which must be there.

    Annotation files that are not there are left out: what reads the rows tells of them.
    """
    named = getattr(options, "categories_file", None)
    annotated = [getattr(options, name, None) for name in ("annotation_file", "eval_annotation_file")]
    return [*([named] if named is not None else []), *(file for file in annotated if file and Path(file).is_file())]
