"""Which pixels boxes are measured in: those of the picture as shown, as stored, or of the size that the JSON names.

A photo may be stored on its side with an EXIF orientation that says how to turn it, and `datasets` turns it. Some tools
measure boxes before, others after, and the size in the JSON may be either, or that of a larger copy. So three sources
are compared, the file, the JSON's size and the boxes; boxes are brought to the picture as shown where one reading fits them.
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
_SLACK = 1  # pixels that a box may leave its frame by and still fit, and that sizes may differ by
_OUTLIERS = 0.01  # the share of boxes that may leave a frame that fits


@dataclass(frozen=True)
class Frames:
    """The frame of n pictures: `size (n, 2)`, and the EXIF `orientation (n,)` that turns it to the picture as shown."""

    size: np.ndarray
    orientation: np.ndarray


@dataclass(frozen=True)
class Conflict:
    """Pictures `(n,)` whose sources do not agree, what about, and whether it is unknown what their boxes mean."""

    pictures: np.ndarray
    what: str
    is_open: bool


def turned(boxes: np.ndarray, size: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Boxes `(n, 4)`, x0, y0, x1, y1 in frames of `size (n, 2)`, in the frames turned as EXIF's `orientation (n,)` says."""
    sideways = (orientation >= 5)[:, None]
    corners = boxes.reshape(-1, 2, 2)
    corners = np.where(sideways[..., None], corners[..., ::-1], corners)
    shown = np.where(sideways, size[:, ::-1], size)[:, None]
    mirrored = np.stack([np.isin(orientation, (2, 3, 6, 7)), np.isin(orientation, (3, 4, 7, 8))], axis=1)[:, None]
    corners = np.where(mirrored, shown - corners, corners)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def turned_map(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels `(H, W, ...)`, turned as EXIF's `orientation` says."""
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def inverse(orientation: int) -> int:
    """The orientation that turns back; the others undo themselves."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def to_picture(boxes: np.ndarray, frames: Frames, shown: np.ndarray) -> np.ndarray:
    """Boxes `(n, 4)` in n frames, in pixels of the pictures as shown, of sizes `(n, 2)`."""
    size = np.where(frames.orientation[:, None] >= 5, frames.size[:, ::-1], frames.size)
    return turned(boxes, frames.size, frames.orientation) * np.tile(shown / size, 2)


def to_annotations(boxes: np.ndarray, frame: Mapping[str, Any]) -> np.ndarray:
    """Boxes `(n, 4)` in pixels of one picture, where its annotation file measures: `frame` is its row's (`FRAME_FEATURE`)."""
    size, shown, orientation = np.array(frame["size"]), np.array(frame["image_size"]), frame["orientation"]
    if orientation == _UPRIGHT and (size == shown).all():
        return boxes
    upright = size[::-1] if orientation >= 5 else size  # as large as the frame, turned as the picture
    each = np.ones((len(boxes), 1), int)
    return turned(boxes * np.tile(upright / shown, 2), each * upright, each[:, 0] * inverse(orientation))


def choose_frames(
    headers: Headers, json_sizes: np.ndarray, boxes: np.ndarray, image_of: np.ndarray, frame: Frame
) -> tuple[Frames, list[Conflict]]:
    """The frame that each picture's boxes are measured in.

    Where file and JSON agree, it is the picture. The other pictures are taken together by the way in which they differ, as a
    tool has one habit: the reading is taken that makes all of their boxes fit (of many, 99 %), if there is only one.

    Args:
        headers: of the n files.
        json_sizes: width and height `(n, 2)` that the JSON says; 0 where it does not.
        boxes: `(m, 4)`, x0, y0, x1, y1 as the JSON has them, all with an area.
        image_of: `(m,)`, the picture of each.
        frame: "auto" as above, or what is so: the picture as "shown", as "stored", or the size in the "json".
    """
    if frame not in get_args(Frame):
        raise ValueError(f"frame must be one of {get_args(Frame)}, it is {frame!r}.")
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
    """Files, JSON and boxes of n pictures, and the readings of them."""

    def __init__(self, headers: Headers, json_sizes: np.ndarray, boxes: np.ndarray, image_of: np.ndarray):
        self.boxes, self.image_of = boxes, image_of
        self.is_turned = headers.orientation != _UPRIGHT
        shown, stored, upright = headers.shown, headers.sizes, np.full_like(headers.orientation, _UPRIGHT)
        self.is_told = json_sizes.min(1, initial=1) > 0
        self.says_shown, says_stored = _near(json_sizes, shown), _near(json_sizes, stored)
        self.is_sided = ~_near(shown, stored)  # only there does the size tell how a picture is turned
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
        """The pictures that are to be judged together: which, what is in doubt, and the names of the readings."""
        differs = self.is_told & ~self.says_shown & ~self.is_turned
        yield self.is_turned, "are turned by EXIF", ["shown", "stored", "json", "json, stored"]
        yield differs & self.is_like, "have another size than the JSON says", ["shown", "json"]
        yield differs & ~self.is_like, "have another shape than the JSON says", ["shown", "json"]

    def judge(self, pool: np.ndarray, names: list[str]) -> tuple[Frames | None, str]:
        """The reading of the pictures in the pool, `None` where it is open, and what to say of it."""
        judged = pool & (np.bincount(self.image_of, minlength=len(pool)) > 0)
        if not judged.any():
            return self.of_json, ""
        fitting: list[str] = []
        for name in names:
            if self._fits(name, judged) and not any(self._same(name, other, judged) for other in fitting):
                fitting.append(name)
        possible = [name for name in fitting if self.can_be[name][judged].all()]
        if any(name.startswith("json") for name in possible):  # else an impossible one tells that something is wrong
            fitting = possible
        if len(fitting) == 1 and fitting == possible:
            if fitting == ["shown"] and (self.says_shown | ~self.is_told)[judged].all():
                return self.readings["shown"], ""  # nothing says otherwise
            return self.readings[fitting[0]], f"; their boxes fit them {_IN_WORDS[fitting[0]]} only, and are read so"
        if not fitting:
            return None, ", and their boxes fit them neither " + " nor ".join(_IN_WORDS[name] for name in names[:2])
        if (self.says_shown | ~(self.is_told | self.is_sided))[judged].all():
            if (self.is_sided & self.says_shown & self.is_told)[judged].any():
                return self.readings["shown"], ""  # the JSON's sizes know of the turn
            return self.readings["shown"], (
                ", and nothing tells whether their boxes are for the pixels as shown or as stored; they are read as shown "
                '(frame="stored" if that is wrong)'
            )
        options = " or ".join(f'frame="{name}"' for name in dict.fromkeys(name.split(",")[0] for name in fitting))
        words = " as well as ".join(_IN_WORDS[name] for name in fitting)
        return None, f", and their boxes fit them {words}; say which is so: {options}"

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
    """Whether one is the other resized, each side rounded to a pixel."""
    low, high = (others - _SLACK) / np.maximum(sizes, 1), (others + _SLACK) / np.maximum(sizes, 1)
    return low.max(1) <= high.min(1)
