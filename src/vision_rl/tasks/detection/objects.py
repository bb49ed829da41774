"""The objects of a row as arrays, in all the forms that data sets have them; those of a whole data set at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from vision_rl.columns import (
    arrow_chunks,
    check_values,
    column_values,
    flat_fields,
    is_list,
    is_number,
    list_lengths,
)
from vision_rl.data.coco import CLASS_FIELDS


MISSING = float("nan")


@dataclass
class Objects:
    """n objects, of a row or of a whole data set.

    Args:
        boxes: `(n, 4)` float64: x, y, width, height in pixels.
        labels: `(n,)` int64, places in the processor's categories.
        area: `(n,)` float64, NaN for one that is not given: its box's counts.
        iscrowd: `(n,)` bool.
        rows: `(n,)` int64, the numbers of their rows.
    """

    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    rows: np.ndarray


def read_objects(objects: Any, categories: Sequence[str], row: int = 0) -> Objects:
    """A row's objects, from a dict of lists or a list of dicts; `None` is an image without objects.

    Lists may be arrays or tensors. The class is in the first of `CLASS_FIELDS` that is there, a name of `categories` or its
    place. `area` and `iscrowd` may be absent, whole or of one object.

    Raises:
        ValueError: with the field, and the object where it is one.
    """
    fields = _fields(_plain(objects))
    boxes = _boxes(fields["bbox"])
    count = len(boxes)
    labels = [_label(i, value, categories) for i, value in enumerate(_values("category", fields, count))]
    area = [_area(i, value) for i, value in enumerate(_values("area", fields, count))]
    iscrowd = [_crowd(i, value) for i, value in enumerate(_values("iscrowd", fields, count))]
    return Objects(
        boxes,
        np.array(labels, np.int64),
        np.array(area, np.float64),
        np.array(iscrowd, bool),
        np.full(count, row),
    )


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists, numpy's numbers as Python's, at all depths."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _fields(objects: Any) -> dict[str, Any]:
    """`bbox`, `category`, and `area` and `iscrowd` or `None`: lists with an entry an object."""
    if objects is None:
        objects = []
    if isinstance(objects, list):
        objects = _transposed(objects)
    if not isinstance(objects, dict):
        raise ValueError(
            f"The objects are the {type(objects).__name__} {_shown(objects)}; they must be a dict of lists or a list of "
            "dicts, with `bbox` and `category`."
        )
    name = next((name for name in CLASS_FIELDS if name in objects), None)
    if name is None or "bbox" not in objects:
        raise ValueError(f"The objects have {sorted(objects)}; they need `bbox` and `category`.")
    return {
        "bbox": objects["bbox"],
        "category": objects[name],
        "area": objects.get("area"),
        "iscrowd": objects.get("iscrowd"),
    }


def _transposed(rows: list) -> dict[str, list]:
    """Objects, a dict each, as a list a field; what one lacks and another has is `None`."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Object {i} is {_shown(row)}; it must be a dict with `bbox` and `category`.")
    names = dict.fromkeys(name for row in rows for name in row) if rows else ("bbox", "category")
    return {name: [row.get(name) for row in rows] for name in names}


def _boxes(values: Any) -> np.ndarray:
    """The boxes as an array `(n, 4)` of finite numbers."""
    values = [] if values is None else values
    if not isinstance(values, list):
        raise ValueError(f"`bbox` is {_shown(values)}; it must be a list of boxes.")
    boxes = np.array([_box(i, box) for i, box in enumerate(values)], np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        bad = int((~np.isfinite(boxes)).any(1).sum())
        raise ValueError(f"{bad} of {len(boxes)} boxes in `bbox` are NaN or infinite.")
    return boxes


def _box(i: int, box: Any) -> list[float]:
    """Four numbers, NaN for one that is `None`."""
    if not isinstance(box, list) or len(box) != 4 or any(isinstance(number, list | dict) for number in box):
        points = (
            " It has points: take their smallest x and y, and the differences to the largest as width and height."
            if _has_points(box)
            else ""
        )
        raise ValueError(
            f"Box {i} in `bbox` is {_shown(box)}; it must be four numbers: x, y, width, height in pixels.{points}"
        )
    return [MISSING if number is None else _number(f"Box {i} in `bbox`", number) for number in box]


def _has_points(box: Any) -> bool:
    """Two corners or a polygon."""
    return isinstance(box, list) and len(box) > 0 and all(isinstance(point, list) for point in box)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."


def _number(what: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{what} has {_shown(value)}, which is not a number.")
    return float(value)


def _values(name: str, fields: dict[str, Any], count: int) -> list:
    """One value an object; of a field that is not there `None` each."""
    values = fields[name]
    if values is None and (count == 0 or name != "category"):
        return [None] * count
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {_shown(values)}; it must be a list with one entry per box.")
    if len(values) != count:
        entries = "categories" if name == "category" else "entries"
        raise ValueError(f"There are {count} boxes in `bbox`, but {len(values)} {entries} in `{name}`.")
    return values


def _label(i: int, category: Any, categories: Sequence[str]) -> int:
    """The place of a category."""
    if isinstance(category, str):
        if category not in categories:
            raise ValueError(f"The category {category!r} is not one of {list(categories)}.")
        return categories.index(category)
    if category is None or category != category:
        raise ValueError(f"The category of object {i} is missing: it is {category}.")
    if not isinstance(category, int | float) or isinstance(category, bool) or category % 1:
        raise ValueError(
            f"The category of object {i} is {_shown(category)}; it must be a name, or the place of a name as a whole number."
        )
    if not 0 <= category < len(categories):
        raise ValueError(
            f"The category {category} is out of range: there are {len(categories)}, from 0, which is {categories[0]!r}. "
            "COCO's own ids have gaps and start at 1: map them to 0, 1, 2, ..."
        )
    return int(category)


def _area(i: int, value: Any) -> float:
    area = MISSING if value is None else _number(f"`area` of object {i}", value)
    if area < 0 or area == float("inf"):
        raise ValueError(
            f"`area` of object {i} is {area}; it must be a number of pixels, or None for the area of its box."
        )
    return area


def _crowd(i: int, value: Any) -> bool:
    if value is None or value != value:  # NaN, as `datasets` formats a null
        return False
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"`iscrowd` of object {i} is {_shown(value)}; it must be 0 or 1.")


# --- all rows at once -----------------------------------------------------------------------------------------------


def read_column(dataset, column: str, categories: Sequence[str], sample: bool = True) -> Objects:
    """The objects of all rows, or of some where a data set is neither a table nor a list and `sample` is left on.

    Of a table whole columns are read at once, and only rows that are out of the ordinary one by one.

    Raises:
        ValueError: for all rows that cannot be used together, with the first.
    """
    parts = [read_objects(None, categories)]

    def rows() -> Iterator[tuple[int, tuple[int, Any]]]:
        chunks = arrow_chunks(dataset, column)
        if chunks is None:
            yield from ((row, (row, value)) for row, value in column_values(dataset, column, sample))
            return
        for first, chunk in chunks:
            usual, others = _read_usual(chunk, categories, first)
            parts.append(usual)
            yield from ((first + i, (first + i, chunk[i].as_py())) for i in others.tolist())

    def read(value: tuple[int, Any]) -> None:
        row, objects = value
        parts.append(read_objects(objects, categories, row))

    check_values(rows(), column, len(dataset), read)
    fields = zip(*((o.boxes, o.labels, o.area, o.iscrowd, o.rows) for o in parts), strict=True)
    return Objects(*map(np.concatenate, fields))


def _read_usual(chunk: pa.Array, categories: Sequence[str], first: int) -> tuple[Objects, np.ndarray]:
    """The objects of the rows in which nothing is missing or odd, and the places `(m,)` of the other rows."""
    fields = flat_fields(chunk)
    name = next((name for name in CLASS_FIELDS if name in fields), None)
    if name is None or "bbox" not in fields:
        fields, count = {}, np.full(len(chunk), -1)
    else:
        fields = {key: fields[key] for key in _READERS if key in fields} | {"category": fields[name]}
        count = fields["bbox"][0]
    usual = np.all([count >= 0, *(lengths == count for lengths, _ in fields.values())], axis=0)
    read = {}
    for key, (lengths, values) in fields.items():
        row = np.repeat(np.arange(len(chunk)), np.maximum(lengths, 0))
        entries, good = _READERS[key](values, categories)
        usual[row[~good]] = False
        read[key] = row, entries
    kept = {key: entries[usual[row]] for key, (row, entries) in read.items()}
    rows = first + np.repeat(np.arange(len(chunk)), np.where(usual, count, 0))
    objects = Objects(
        kept.get("bbox", np.zeros((0, 4))),
        kept.get("category", np.zeros(0, np.int64)),
        kept.get("area", np.full(len(rows), MISSING)),
        kept.get("iscrowd", np.zeros(len(rows), bool)),
        rows,
    )
    return objects, np.flatnonzero(~usual)


def _nothing(values: pa.Array, shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Return zeros and that no row is usual, for a column of a type that is not read all at once."""
    return np.zeros((len(values), *shape), dtype), np.zeros(len(values), bool)


def _usual_boxes(values: pa.Array, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes as an array `(n, 4)`, and whether each is four finite numbers, `(n,)`."""
    boxes, good = _nothing(values, (4,), np.float64)
    if is_list(values.type) and is_number(values.type.value_type):
        good = list_lengths(values) == 4
        numbers = values.filter(pa.array(good)).flatten().cast(pa.float64()).fill_null(MISSING)
        boxes[good] = numbers.to_numpy().reshape(-1, 4)
        good &= np.isfinite(boxes).all(1)
    return boxes, good


def _usual_labels(values: pa.Array, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.index_in(values, value_set=pa.array(categories, values.type))
    if not pa.types.is_integer(values.type):
        return _nothing(values, (), np.int64)
    labels = values.cast(pa.int64()).fill_null(-1).to_numpy()
    return labels, (labels >= 0) & (labels < len(categories))


def _usual_areas(values: pa.Array, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if not is_number(values.type):
        return _nothing(values, (), np.float64)
    areas = values.cast(pa.float64()).fill_null(MISSING).to_numpy()
    return areas, ~((areas < 0) | np.isinf(areas))


def _usual_crowds(values: pa.Array, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type)):
        return _nothing(values, (), bool)
    crowds = values.cast(pa.int64()).fill_null(0).to_numpy()
    return crowds == 1, (crowds == 0) | (crowds == 1)


_READERS = {"bbox": _usual_boxes, "category": _usual_labels, "area": _usual_areas, "iscrowd": _usual_crowds}
