"""Read the `images` of a COCO file, and find the image of each annotation by its id."""

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vision_rl.data.bad_rows import BadRows
from vision_rl.data.fields import BadField, as_id, as_number, as_text, is_missing, read_field
from vision_rl.data.frames import FRAME_FEATURE, Frames


class CocoImages:
    """The images of a JSON: `ids`, file `names`, and `sizes`, width and height, which are 0 where the JSON has none.

    Args:
        bad_rows: collects entries without an id, which are left out, and entries without a name, whose name is `None`.
    """

    def __init__(self, bad_rows: BadRows):
        self.bad_rows = bad_rows
        self.ids: list[Any] = []
        self.names: list[str | None] = []
        self._sizes = array("q")
        self.count = 0

    def add(self, entry: Any) -> None:
        """Add one entry of `images`."""
        self.count += 1
        where = f"number {self.count}: {shortened(entry)}"
        if not isinstance(entry, dict):
            self.bad_rows.add("images", "are not objects with fields", where)
            return
        try:
            self.ids.append(read_field(entry, "id", as_id))
        except BadField as error:
            self.bad_rows.add("images", f"have {error}", where)
            return
        try:
            self.names.append(_file_name(entry))
        except BadField as error:
            self.bad_rows.add("images", f"have {error}", where)
            self.names.append(None)
        self._sizes.extend((_side(entry.get("width")), _side(entry.get("height"))))

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of the images as the JSON has them, `(n, 2)`."""
        return np.array(self._sizes, np.int64).reshape(-1, 2)

    def check(self, file: str | Path) -> None:
        """Raise `ValueError` if there are no images, or if two images have the same id."""
        if not self.count:
            raise ValueError(f"{file} has no images.")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{file} has {len(self.ids) - len(set(self.ids))} images with the id of another image.")


def left_out(folder: str | Path, names: Sequence[str | None], kept: np.ndarray) -> list[str]:
    """Return the paths of the named files that are not `kept (n,)`, whether these files exist or not."""
    named = [name for name, is_kept in zip(names, kept, strict=True) if name is not None and not is_kept]
    return [os.path.join(os.path.abspath(folder), name) for name in named]


def image_column(paths: Sequence[str | None], pictures: Sequence[bytes | None] | None = None) -> pa.StructArray:
    """Make a column as `datasets.Image` stores it, which opens a file when its row is read.

    A row whose entry of `pictures` is not None has this encoded picture in place of the file.
    """
    held = pa.nulls(len(paths), pa.binary()) if pictures is None else pa.array(pictures, pa.binary())
    return pa.StructArray.from_arrays([held, pa.array(paths, pa.string())], ["bytes", "path"])


def frame_column(frames: Frames, shown: np.ndarray, rows: np.ndarray) -> pa.StructArray:
    """Make a column of type `FRAME_FEATURE` of the frames of `rows`; `shown (n, 2)` are the sizes of the pictures."""
    size, image_size = (
        pa.FixedSizeListArray.from_arrays(pa.array(sizes[rows].reshape(-1)), 2) for sizes in (frames.size, shown)
    )
    return pa.StructArray.from_arrays([size, pa.array(frames.orientation[rows]), image_size], list(FRAME_FEATURE))


def _file_name(entry: dict[str, Any]) -> str:
    if is_missing(entry.get("file_name")) and isinstance(entry.get("coco_url"), str):
        return "/".join(as_text(entry["coco_url"]).split("/")[-2:])  # LVIS: http://.../train2017/000000391895.jpg
    return read_field(entry, "file_name", as_text)


def _side(value: Any) -> int:
    """Return a width or height; 0 where a tool wrote -1, null or a word."""
    try:
        return max(0, min(round(as_number(value)), 2**31))
    except BadField:
        return 0


def places(
    what: str,
    key: str,
    values: Sequence[Any],
    known: Sequence[Any],
    name_of: Callable[[int], str],
    bad_rows: BadRows,
    noun: str = "annotations",
) -> np.ndarray:
    """Return the index of each value in `known`, or -1 for an unknown value, which is added to `bad_rows`.

    A number never equals a text: "1" is not 1.

    Args:
        what: the noun of a value in the report, such as "an image".
        key: the field of the values, such as "image_id".
        values: the values to find.
        known: the values in which they are sought.
        name_of: the name of the value's annotation in the report, by the value's index.
        bad_rows: collects the unknown values.
        noun: the noun of the annotations in the report.
    """
    place_of = {value: place for place, value in enumerate(known)}
    found = np.full(len(values), -1, np.int64)
    for index, value in enumerate(values):
        place = place_of.get(value, -1) if isinstance(value, int | str | float) else -1
        found[index] = place
        if place < 0:
            other = str(value) if isinstance(value, int) else _whole(value)
            hint = ", whose ids are texts, not numbers" if other in place_of else ""
            hint = hint if isinstance(other, str) else hint.replace("texts, not numbers", "numbers, not texts")
            where = f"{name_of(index)} with {key} {shortened(value)}"
            bad_rows.add(noun, f"have {what} that is not in the file{hint}", where)
    return found


def _whole(value: Any) -> int | None:
    """Return the whole number that a text spells, or None."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19 else None


def id_feature(ids: Sequence[Any], file: str | Path) -> datasets.Value:
    """Return the type of a column of image ids: COCO's ids are numbers, ids of other data sets may be texts.

    Raises:
        ValueError: for texts and numbers together, which a column cannot hold.
    """
    kinds = {type(value) for value in ids}
    if str in kinds and len(kinds) > 1:
        number = next(value for value in ids if not isinstance(value, str))
        text = next(value for value in ids if isinstance(value, str))
        raise ValueError(f"{file} has both texts and numbers as image ids, such as {text!r} and {number}.")
    return datasets.Value("string" if str in kinds else "float64" if float in kinds else "int64")


def shortened(value: Any, length: int = 100) -> str:
    """Return the text of a value in an error, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
