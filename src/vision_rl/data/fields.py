"""Values as annotation tools write them: numbers and flags that are also text, missing ones that are null or NaN."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


class BadField(ValueError):
    """A value that cannot be what its field is to hold; `str()` says why, without the place."""


_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no", ""}


def is_missing(value: Any) -> bool:
    """Whether a field has no value: null, or the NaN that tables make of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_number(value: Any) -> float:
    """A finite number, also where it is text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadField("is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise BadField("is no number") from None
    if not math.isfinite(number):
        raise BadField("is not finite")
    return number


def as_flag(value: Any) -> int:
    """0 or 1 of a number, a bool or a text such as "true"; 0 for no value."""
    if is_missing(value):
        return 0
    text = value.strip().lower() if isinstance(value, str) else value
    if text in (0, 1):  # True and 1.0 too
        return int(text)
    if isinstance(text, str) and text in _TRUE | _FALSE:
        return int(text in _TRUE)
    raise BadField("is neither 0 nor 1")


def as_id(value: Any) -> int | str | float:
    """An id as the file has it: text stays text, and 7.0 is 7."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadField("is no id")
    if abs(value) >= 2**63:
        raise BadField("is too large for an id")
    return int(value) if value == int(value) else value


def as_text(value: Any) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise BadField("is no text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # half a character, which JSON can spell
        raise BadField("is no valid text")
    return value


def read_field(entry: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of an entry's field; the error tells which field: "no `id`", "an `id` that is no text"."""
    try:
        return read(entry.get(key))
    except BadField as error:
        raise BadField(f"no `{key}`" if is_missing(entry.get(key)) else f"{a_field(key)} that {error}") from error


def a_field(key: str) -> str:
    """ "an `id`", "a `bbox`"."""
    return f"{'an' if key[0] in 'aeiou' else 'a'} `{key}`"


def ids_of(name: str, values: Iterable[Any]) -> list[int | str | float]:
    """The ids that a caller gives as `name`: a list, an array or a tensor."""
    ids = []
    for place, value in enumerate(values):
        try:
            ids.append(as_id(np.asarray(value).item() if np.ndim(value) == 0 else value))
        except BadField as error:
            raise ValueError(f"{name}[{place}] is {value!r}, which {error}.") from error
    return ids


def distinct_ids(name: str, values: Iterable[Any]) -> list[int | str | float]:
    """The same, of images, each once."""
    ids = ids_of(name, values)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{name} has an id more than once: COCO wants all of an image together.")
    return ids
