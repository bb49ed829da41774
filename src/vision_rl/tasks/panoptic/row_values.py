"""The map and the segments of a row, in the forms that data sets have them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.tasks.panoptic.segments import as_map, ids_from_rgb


def segment_ids(values: Any) -> np.ndarray:
    """Segment ids `(H, W)` of a picture in COCO's colours, an array of them, or an integer map."""
    if isinstance(values, Image.Image):
        if values.mode == "P":
            raise ValueError(
                "The map is a picture with a palette. If its ids are the colours of the palette, convert it to RGB; if they "
                "are the indices, make it an array."
            )
        values = np.asarray(values)
    values = np.asarray(values)
    return ids_from_rgb(values) if values.ndim == 3 else as_map(values)


def segments_of(infos: Any) -> list[dict]:
    """A row's segments as a list of dicts, also from a dict of lists; `None` is an image of void.

    Raises:
        ValueError: for a segment without whole numbers as `id` and `category_id`, or whose `iscrowd` is not 0 or 1.
    """
    if infos is None:
        return []
    if isinstance(infos, Mapping):
        fields = {name: list(values) for name, values in infos.items() if values is not None}
        if len({len(values) for values in fields.values()}) > 1:
            lengths = {name: len(values) for name, values in fields.items()}
            raise ValueError(f"The lists of segments_info must have the same length; they have {lengths}.")
        infos = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    if isinstance(infos, str):
        raise ValueError("The segments are a string; they must be a list of dicts with `id` and `category_id`.")
    return [_segment(i, info) for i, info in enumerate(infos)]


def _segment(i: int, info: Any) -> dict:
    if not isinstance(info, Mapping):
        raise ValueError(f"Segment {i} is {info!r}; it must be a dict with `id` and `category_id`.")
    segment = dict(info)
    for name in ("id", "category_id"):
        value = segment.get(name)
        number = None if isinstance(value, str | bool) or value is None else int(value)
        if number is None or number != value:
            raise ValueError(f"`{name}` of segment {i} is {value!r}; it must be a whole number.")
        segment[name] = number
    crowd = segment.get("iscrowd")
    if crowd is not None and (isinstance(crowd, str) or crowd not in (0, 1)):
        raise ValueError(f"`iscrowd` of segment {i} is {crowd!r}; it must be 0 or 1.")
    return {**segment, "iscrowd": int(crowd or 0)}
