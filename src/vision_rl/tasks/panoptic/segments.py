"""A panoptic map and its segments: what they must be, ids as colours, nearest resize."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import numpy as np


VOID = 0  # the id of pixels that belong to no segment
NUM_IDS = 2**24  # three bytes of colour

# An integer map (H, W) of segment ids, 0 = void; and a dict a segment: `id`, `category_id`, in references also `iscrowd`.
Segmentation: TypeAlias = tuple[Any, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Segments:
    """A segmentation as arrays: `ids (H, W)`, and of its n segments the id, the category and whether it is a crowd."""

    map: np.ndarray
    ids: np.ndarray
    categories: np.ndarray
    iscrowd: np.ndarray


def read_segments(segmentation: Segmentation) -> Segments:
    """The arrays of a segmentation.

    Raises:
        ValueError: for a map that is not `(H, W)` of integers, and for segments without an id or category, with the id
            of void, or with one id twice.
    """
    ids, segments_info = map_and_segments(segmentation)
    rows = []
    for segment in segments_info:
        if segment.get("id") is None or segment.get("category_id") is None:
            raise ValueError(f"A segment needs `id` and `category_id`; this one has {dict(segment)}.")
        rows.append((segment["id"], segment["category_id"], segment.get("iscrowd") or 0))
    table = np.array(rows, np.int64).reshape(-1, 3)
    listed = table[:, 0].tolist()
    if len(set(listed)) < len(listed) or VOID in listed:
        raise ValueError(
            f"The ids of an image's segments must differ, and none may be {VOID}, which is void; they are {listed}."
        )
    return Segments(ids, table[:, 0], table[:, 1], table[:, 2] == 1)


def map_and_segments(segmentation: Segmentation) -> Segmentation:
    """The two parts of a segmentation, the map as an array."""
    if not isinstance(segmentation, tuple | list) or len(segmentation) != 2:
        raise ValueError(
            "A segmentation must be a pair (map, segments_info), a map of ids (H, W) and a list with one dict per segment; "
            f"this is a {type(segmentation).__name__}."
        )
    return as_map(segmentation[0]), segmentation[1]


def as_map(ids: Any) -> np.ndarray:
    """Segment ids as an integer array `(H, W)`, from nested lists, arrays or tensors on the CPU."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"A map of segment ids must be (H, W) of integers; this one is {ids.shape} of {ids.dtype}.")
    return ids


def places_of(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The place of each value in `ids`, all different; -1 for a value that is not among them.

    Looked up under the remainder of a division that keeps the ids apart, found at once where the divisor is about the
    square of their number: a small table, and no search for each pixel.
    """
    if len(ids) == 0:
        return np.full(values.shape, -1)
    divisor = next(d for d in count(len(ids) ** 2) if len(set((ids % d).tolist())) == len(ids))
    table = np.zeros(divisor, np.intp)
    table[ids % divisor] = np.arange(len(ids))
    wide = values if values.itemsize >= 4 else values.astype(np.int64)  # bytes could not be divided by more than 255
    place = table.take(wide % divisor)
    place[ids.take(place) != values] = -1
    return place


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(H, W, ...)` to `(height, width, ...)`: the pixel below each new pixel's centre, as TensorFlow and JAX take it."""
    if values.shape[:2] == tuple(size):
        return values
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, values.shape[:2], strict=True)
    )
    return values[rows[:, None], columns]


def resized(segmentation: Segmentation, size: tuple[int, int]) -> Segmentation:
    """The segmentation at `size` (height, width): a nearest resize of the finished map, without segments that vanish.

    So the authors' evaluation brings a prediction to the image's size, and their labels come to the model's size.
    """
    ids, segments_info = map_and_segments(segmentation)
    if ids.shape == tuple(size):
        return ids, segments_info
    ids = resize_nearest(ids, size)
    left = set(distinct_ids(ids).tolist())
    return ids, [segment for segment in segments_info if segment["id"] in left]


def run_bounds(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Where, in the flattened maps, a run of pixels begins in which neither of them changes, and where the last one ends.

    Segments are long runs. Places are found in two thirds of `np.flatnonzero`'s time: eight bytes at a time, as few are
    set, and by shifts, as numpy divides slowly.
    """
    ids, others = ids.reshape(-1), others.reshape(-1)
    size = len(ids)
    changes = np.zeros(8 * (size // 8 + 1), bool)
    changes[[0, size]] = True
    np.not_equal(ids[1:], ids[:-1], out=changes[1:size])
    changes[1:size] |= others[1:] != others[:-1]
    eights = changes.view(np.uint64)
    places = np.flatnonzero(eights != 0)
    found = np.flatnonzero(eights.take(places).view(bool))
    return places.take(found >> 3) * 8 + (found & 7)


def distinct_ids(ids: np.ndarray) -> np.ndarray:
    """The ids of a map, sorted; many times faster than `np.unique` of all its pixels."""
    ids = ids.reshape(-1)
    return np.unique(ids[np.append(True, ids[1:] != ids[:-1])])


def unlisted_ids(segments: Segments) -> np.ndarray:
    """The ids of the map that belong to no segment and are not void, sorted."""
    return np.setdiff1d(distinct_ids(segments.map), np.append(VOID, segments.ids))


def ids_from_rgb(pixels: np.ndarray) -> np.ndarray:
    """COCO's colours `(H, W, 3)` to segment ids `(H, W)`: R + 256 G + 65536 B."""
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ValueError(f"Segment colours must be (H, W, 3) of uint8; these are {pixels.shape} of {pixels.dtype}.")
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return red + 256 * green + 65536 * blue


def rgb_from_ids(ids: Any) -> np.ndarray:
    """Segment ids `(H, W)` to COCO's colours `(H, W, 3)` uint8."""
    ids = as_map(ids)
    if ids.min() < 0 or ids.max() >= NUM_IDS:
        raise ValueError(
            f"Only ids from 0 to {NUM_IDS - 1} fit into a colour; these go from {ids.min()} to {ids.max()}."
        )
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
