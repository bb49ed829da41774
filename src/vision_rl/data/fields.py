"""Read values as annotation tools write them: numbers and flags may be texts, and missing values null or NaN."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class BadField(ValueError):
    """Raised for a value that does not fit its field. The message tells why, but not where the value stands."""


_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no", ""}


def is_missing(value: Any) -> bool:
    """Return whether a field has no value: null, or the NaN into which tables turn null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_number(value: Any) -> float:
    """Return a finite number from a number or a text, or raise `BadField`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadField("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise BadField("is not a number") from None
    if not math.isfinite(number):
        raise BadField("is not finite")
    return number


def as_flag(value: Any) -> int:
    """Return 0 or 1 from a number, a bool or a text such as "true"; 0 for a missing value. Else raise `BadField`."""
    if is_missing(value):
        return 0
    text = value.strip().lower() if isinstance(value, str) else value
    if text in (0, 1):  # True and 1.0 are in the tuple, too
        return int(text)
    if isinstance(text, str) and text in _TRUE | _FALSE:
        return int(text in _TRUE)
    raise BadField("is neither 0 nor 1")


def as_id(value: Any) -> int | str | float:
    """Return an id as the file has it: a text stays a text, and 7.0 becomes 7. Else raise `BadField`."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadField("is not an id")
    if abs(value) >= 2**63:
        raise BadField("is too large for an id")
    return int(value) if value == int(value) else value


def as_text(value: Any) -> str:
    """Return a text that is not blank, or raise `BadField`."""
    if not isinstance(value, str) or not value.strip():
        raise BadField("is not a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # half a character, which JSON can spell
        raise BadField("is not a valid text")
    return value


def read_field(entry: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    """Return `read(entry.get(key))`; a `BadField` names the field: "no `id`", "an `id` that is no text"."""
    try:
        return read(entry.get(key))
    except BadField as error:
        raise BadField(f"no `{key}`" if is_missing(entry.get(key)) else f"{a_field(key)} that {error}") from error


def a_field(key: str) -> str:
    """Return the field with its article: "an `id`", "a `bbox`"."""
    return f"{'an' if key[0] in 'aeiou' else 'a'} `{key}`"


def ids_of(name: str, values: Iterable[Any]) -> list[int | str | float]:
    """Return the ids that a caller gives as the argument `name`: a list, an array or a tensor.

    Raises:
        ValueError: for a value that is no id.
    """
    ids = []
    for place, value in enumerate(values):
        try:
            ids.append(as_id(np.asarray(value).item() if np.ndim(value) == 0 else value))
        except BadField as error:
            raise ValueError(f"{name}[{place}] is {value!r}, which {error}.") from error
    return ids


def distinct_ids(name: str, values: Iterable[Any]) -> list[int | str | float]:
    """Return the image ids that a caller gives as the argument `name`, which must all differ.

    Raises:
        ValueError: for a value that is no id, and for an id that occurs twice.
    """
    ids = ids_of(name, values)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{name} has an id more than once: COCO wants all answers for an image together.")
    return ids


def ids_and_pngs(name: str, values: Iterable[Any], num_digits: int = 0) -> tuple[list[int | str | float], list[str]]:
    """Return the image ids as `distinct_ids` does, and the name of a PNG of each, numbers in at least `num_digits` digits.

    Raises:
        ValueError: as `distinct_ids`, and for ids that are no names of files in one folder.
    """
    ids = distinct_ids(name, values)
    pngs = [f"{image_id:0{num_digits}d}.png" if isinstance(image_id, int) else f"{image_id}.png" for image_id in ids]
    for image_id, png in zip(ids, pngs, strict=True):
        if Path(png).name != png or not {"\\", "\0"}.isdisjoint(png):
            raise ValueError(f"The image id {image_id!r} cannot be the name of a file: give the images other ids.")
    if len(set(pngs)) < len(pngs):
        raise ValueError(f"{name} has a number and a text that would name the same file: give them other ids.")
    return ids, pngs
