"""The frame in which boxes are measured: the picture as shown, the picture as stored, or the size in the JSON.

A photo may be stored on its side with an EXIF orientation that says how to turn it, and `datasets` turns the photo.
Some tools measure boxes before the turn and others after it. The size in the JSON may also be the size before or after
the turn, or the size of a larger copy. So this module compares three sources: the file, the JSON's size and the boxes.
If one reading of them fits the boxes, the boxes are converted to pixels of the picture as shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import datasets
import numpy as np

from vision_rl.data.image_files import Headers


Frame: TypeAlias = Literal["auto", "shown", "stored", "json"]

FRAME_FEATURE = {
    "size": datasets.List(datasets.Value("int64"), length=2),
    "orientation": datasets.Value("int64"),
    "image_size": datasets.List(datasets.Value("int64"), length=2),
}

_UPRIGHT = 1
_SLACK = 1  # pixels by which a box may leave its frame and still fit, and two sizes may differ and still agree
_OUTLIERS = 0.01  # the share of boxes that may leave a frame that fits


@dataclass(frozen=True)
class Frames:
    """The frames of n pictures: `size (n, 2)`, and the EXIF `orientation (n,)` that turns a frame to its picture."""

    size: np.ndarray
    orientation: np.ndarray


@dataclass(frozen=True)
class Conflict:
    """Pictures `(n,)` whose sources disagree, a description, and whether it stays open how their boxes are meant."""

    pictures: np.ndarray
    what: str
    is_open: bool


def turned(boxes: np.ndarray, size: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Turn boxes `(n, 4)`, x0, y0, x1, y1, with their frames of `size (n, 2)`, by EXIF's `orientation (n,)`."""
    sideways = (orientation >= 5)[:, None]
    corners = boxes.reshape(-1, 2, 2)
    corners = np.where(sideways[..., None], corners[..., ::-1], corners)
    shown = np.where(sideways, size[:, ::-1], size)[:, None]
    mirrored = np.stack([np.isin(orientation, (2, 3, 6, 7)), np.isin(orientation, (3, 4, 7, 8))], axis=1)[:, None]
    corners = np.where(mirrored, shown - corners, corners)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def turned_map(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels `(H, W, ...)` by EXIF's `orientation`."""
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def inverse(orientation: int) -> int:
    """Return the orientation that undoes `orientation`; all but 6 and 8 undo themselves."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def to_picture(boxes: np.ndarray, frames: Frames, shown: np.ndarray) -> np.ndarray:
    """Convert boxes `(n, 4)` of n frames to pixels of the pictures as shown, whose sizes are `shown (n, 2)`."""
    size = np.where(frames.orientation[:, None] >= 5, frames.size[:, ::-1], frames.size)
    return turned(boxes, frames.size, frames.orientation) * np.tile(shown / size, 2)


def to_annotations(boxes: np.ndarray, frame: Mapping[str, Any]) -> np.ndarray:
    """Convert boxes `(n, 4)` in pixels of one picture to the frame in which its annotation file measures.

    `frame` is the value of the column `frame` in the picture's row, of type `FRAME_FEATURE`.
    """
    size, shown, orientation = np.array(frame["size"]), np.array(frame["image_size"]), frame["orientation"]
    if orientation == _UPRIGHT and (size == shown).all():
        return boxes
    upright = size[::-1] if orientation >= 5 else size  # the size of the frame after the turn
    each = np.ones((len(boxes), 1), int)
    return turned(boxes * np.tile(upright / shown, 2), each * upright, each[:, 0] * inverse(orientation))


def choose_frames(
    headers: Headers, json_sizes: np.ndarray, boxes: np.ndarray, image_of: np.ndarray, frame: Frame
) -> tuple[Frames, list[Conflict]]:
    """Choose the frame in which each picture's boxes are measured.

    If file and JSON agree, the frame is the picture as shown. The other pictures are grouped by the way in which file
    and JSON differ, because a tool treats all pictures alike. A group gets the reading that makes all of its boxes fit
    (99 % of many boxes), if there is exactly one such reading.

    Args:
        headers: the headers of the n files.
        json_sizes: width and height `(n, 2)` in the JSON; 0 where the JSON has none.
        boxes: `(m, 4)`, x0, y0, x1, y1 as the JSON has them; all have an area.
        image_of: `(m,)`, the index of each box's picture.
        frame: "auto" chooses as above; otherwise the frame is the picture as "shown", the picture as "stored", or the
            size in the "json".

    Returns:
        The frames of the pictures, and the conflicts between file and JSON that are to be reported.

    Raises:
        ValueError: for another `frame`.
    """
    if frame not in get_args(Frame):
        raise ValueError(f"frame must be one of {get_args(Frame)}; it is {frame!r}.")
    sources = _Sources(headers, json_sizes, boxes, image_of)
    if frame == "json":
        return sources.of_json, []
    if frame != "auto":
        return sources.readings[frame], []
    size, orientation = sources.readings["shown"].size.copy(), sources.readings["shown"].orientation.copy()
    conflicts = []
    for pool, doubt, names in sources.doubtful():
        chosen, verdict = sources.judge(pool, names)
        if verdict:
            conflicts.append(Conflict(pool, f"{doubt}{verdict}", is_open=chosen is None))
        if chosen is not None:
            size[pool], orientation[pool] = chosen.size[pool], chosen.orientation[pool]
    return Frames(size, orientation), conflicts


class _Sources:
    """The files, JSON sizes and boxes of n pictures, and the frames that each possible reading gives the pictures."""

    def __init__(self, headers: Headers, json_sizes: np.ndarray, boxes: np.ndarray, image_of: np.ndarray):
        self.boxes, self.image_of = boxes, image_of
        self.is_turned = headers.orientation != _UPRIGHT
        shown, stored, upright = headers.shown, headers.sizes, np.full_like(headers.orientation, _UPRIGHT)
        self.is_told = json_sizes.min(1, initial=1) > 0
        self.says_shown, says_stored = _near(json_sizes, shown), _near(json_sizes, stored)
        self.is_sided = ~_near(shown, stored)  # only in these pictures does the size tell whether they are turned
        other = (self.is_told & ~self.says_shown & ~says_stored)[:, None]
        like_shown, like_stored = _same_shape(json_sizes, shown), _same_shape(json_sizes, stored)
        self.is_like = like_shown | (self.is_turned & like_stored)
        by_shape = np.where(like_stored & ~like_shown, headers.orientation, upright)
        self.of_json = Frames(np.where(self.is_told[:, None], json_sizes, shown), by_shape)
        self.readings = {
            "shown": Frames(shown, upright),
            "stored": Frames(stored, headers.orientation),
            "json": Frames(np.where(other, json_sizes, shown), upright),
            "json, stored": Frames(np.where(other, json_sizes, stored), headers.orientation),
        }
        anywhere = np.ones(len(shown), bool)
        self.can_be = {"shown": anywhere, "stored": anywhere, "json": ~other[:, 0] | like_shown}
        self.can_be["json, stored"] = ~other[:, 0] | like_stored

    def doubtful(self):
        """Yield each group of pictures to judge together, with the doubt about it and the names of its readings."""
        differs = self.is_told & ~self.says_shown & ~self.is_turned
        yield self.is_turned, "are turned by EXIF", ["shown", "stored", "json", "json, stored"]
        yield differs & self.is_like, "have another size than the JSON says", ["shown", "json"]
        yield differs & ~self.is_like, "have another shape than the JSON says", ["shown", "json"]

    def judge(self, pool: np.ndarray, names: list[str]) -> tuple[Frames | None, str]:
        """Return the frames of the pictures in the pool, or `None` if their reading stays open, and what to report."""
        judged = pool & (np.bincount(self.image_of, minlength=len(pool)) > 0)
        if not judged.any():
            return self.of_json, ""
        fitting: list[str] = []
        for name in names:
            if self._fits(name, judged) and not any(self._same(name, other, judged) for other in fitting):
                fitting.append(name)
        possible = [name for name in fitting if self.can_be[name][judged].all()]
        if any(name.startswith("json") for name in possible):  # else an impossible reading that fits shows a fault
            fitting = possible
        if len(fitting) == 1 and fitting == possible:
            if fitting == ["shown"] and (self.says_shown | ~self.is_told)[judged].all():
                return self.readings["shown"], ""  # no source disagrees
            said = f"; their boxes fit them only {_IN_WORDS[fitting[0]]}, and are read that way"
            return self.readings[fitting[0]], said
        if not fitting:
            return None, ", and their boxes fit them neither " + " nor ".join(_IN_WORDS[name] for name in names[:2])
        if (self.says_shown | ~(self.is_told | self.is_sided))[judged].all():
            if (self.is_sided & self.says_shown & self.is_told)[judged].any():
                return self.readings["shown"], ""  # the JSON has the sizes after the turn
            return self.readings["shown"], (
                ", and nothing tells whether their boxes are for the pixels as shown or as stored; they are read as shown "
                '(pass frame="stored" if that is wrong)'
            )
        options = " or ".join(f'frame="{name}"' for name in dict.fromkeys(name.split(",")[0] for name in fitting))
        words = " as well as ".join(_IN_WORDS[name] for name in fitting)
        return None, f", and their boxes fit them {words}; pass {options}"

    def _fits(self, name: str, judged: np.ndarray) -> bool:
        mine = judged[self.image_of]
        boxes, size = self.boxes[mine], self.readings[name].size[self.image_of[mine]]
        outside = (boxes[:, :2] < -_SLACK).any(1) | (boxes[:, 2:] > size + _SLACK).any(1)
        return bool(outside.mean() <= _OUTLIERS)

    def _same(self, name: str, other: str, judged: np.ndarray) -> bool:
        one, two = self.readings[name], self.readings[other]
        return bool((_near(one.size, two.size) & (one.orientation == two.orientation))[judged].all())


_IN_WORDS = {
    "shown": "as shown",
    "stored": "as stored",
    "json": "at the JSON's size",
    "json, stored": "as stored at the JSON's size",
}


def _near(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (abs(sizes - others) <= _SLACK).all(1)


def _same_shape(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return whether each size is the other size resized, with each side rounded to a pixel."""
    low, high = (others - _SLACK) / np.maximum(sizes, 1), (others + _SLACK) / np.maximum(sizes, 1)
    return low.max(1) <= high.min(1)
