"""The map and the segments of a row, in the forms that data sets have them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from vision_rl.tasks.panoptic.segments import as_map, ids_from_rgb


def segment_ids(values: Any) -> np.ndarray:
    """Segment ids `(H, W)` of a picture in COCO's colours, an array of them, or an integer map."""
    if isinstance(values, Image.Image) and values.mode == "P":
        raise ValueError(
            "The map is a picture with a palette. If its ids are the colours of the palette, convert it to RGB; if they "
            "are the indices, make it an array."
        )
    if isinstance(values, torch.Tensor):  # (3, H, W), as `datasets` formats a picture
        values = np.moveaxis(values.cpu().numpy(), 0, -1) if values.ndim == 3 else values.cpu().numpy()
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
    if isinstance(infos, str) or not isinstance(infos, Iterable):
        raise ValueError(
            f"The segments are a {type(infos).__name__}; they must be a list of dicts with `id` and `category_id`."
        )
    return [_segment(i, info) for i, info in enumerate(infos)]


def _segment(i: int, info: Any) -> dict:
    if not isinstance(info, Mapping):
        raise ValueError(f"Segment {i} is {info!r}; it must be a dict with `id` and `category_id`.")
    segment = dict(info)
    for name in ("id", "category_id"):
        value: Any = _plain(segment.get(name))
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:  # of infinity it is NaN
            raise ValueError(f"`{name}` of segment {i} is {value!r}; it must be a whole number.")
        segment[name] = int(value)
    crowd: Any = _plain(segment.get("iscrowd"))
    if crowd is None or crowd != crowd:  # NaN, as `datasets` formats a null
        return {**segment, "iscrowd": 0}
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        raise ValueError(f"`iscrowd` of segment {i} is {crowd!r}; it must be 0 or 1.")
    return {**segment, "iscrowd": int(crowd)}


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's."""
    return value.item() if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0 else value
