"""Predicted boxes on their image, told apart by whether the reference has them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import PAPER, RIGHT, UNJUDGED, WRONG, Colour, at_width, draw_mark
from vision_rl.tasks.detection.average_precision import checked_prediction, checked_reference


MISSED = (29, 78, 216)


@naming_arguments
def draw(
    image: Image.Image,
    completion: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    width: int | None = None,
    label_names: Sequence[str] | None = None,
    score_threshold: float | None = None,
    title: str | None = None,
) -> Image.Image:
    """The image with its predicted boxes, their classes and scores.

    With a reference, a box that is in it is green with a tick, another is red with a cross, and what was missed is
    blue and dashed, with a question mark. A box is in the reference when a box of its class overlaps with it by
    more than 0.5 (IoU) that no box of a higher score has taken. Boxes on a crowd are neither right nor wrong: dark,
    like all of them without a reference.

    Args:
        image: of any mode, in the pixels that the boxes are in.
        completion: `boxes (n, 4)` xyxy, `labels (n,)`, `scores (n,)`, as `coco_map` takes them.
        reference: `boxes (m, 4)`, `labels (m,)`, optionally `iscrowd (m,)`.
        width: of the drawn image in pixels; without one a small image is enlarged while it fits into 512 pixels.
        label_names: the class names, in order of label; without them the numbers are written.
        score_threshold: boxes of a lower score are left out, and find nothing. Without it all are drawn.
        title: a line above the image.

    Returns:
        An RGB picture of this width, taller than the image by the title.
    """
    found = checked_prediction(completion)
    if score_threshold is not None:
        found = {key: values[found["scores"] >= score_threshold] for key, values in found.items()}
    truth = None if reference is None else checked_reference(reference)
    picture = at_width(image, width)
    pen = _Pen(picture, label_names, scale=picture.width / image.width)
    by_score = np.argsort(found["scores"], kind="stable")  # the best is drawn last: on top

    if truth is None:
        for row in by_score:
            pen.box(found["boxes"][row], found["labels"][row], UNJUDGED, score=found["scores"][row])
    else:
        matched, crowded = match_boxes(found, truth)
        for row in np.setdiff1d(np.flatnonzero(~_crowd(truth)), matched):
            pen.box(truth["boxes"][row], truth["labels"][row], MISSED, dashed=True)
        for row in by_score:
            right = None if crowded[row] else bool(matched[row] >= 0)
            colour = {None: UNJUDGED, True: RIGHT, False: WRONG}[right]
            pen.box(found["boxes"][row], found["labels"][row], colour, score=found["scores"][row], right=right)
    pen.write_labels()
    return picture if title is None else _with_title(picture, title)


def match_boxes(
    prediction: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], iou_threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Match predictions to reference boxes of their label, greedily by score, where the IoU is above the threshold.

    Returns:
        `matched (n,)`, the row in the reference or -1; `crowded (n,)`, true for an unmatched box that lies on a crowd
        of its label with more than that share of itself.
    """
    overlap, iou = _overlaps(prediction["boxes"], reference["boxes"])  # (n, m) each
    same_label = prediction["labels"][:, None] == reference["labels"][None]
    crowd = _crowd(reference)
    free = ~crowd
    matched = np.full(len(prediction["boxes"]), -1)
    for row in np.argsort(-prediction["scores"], kind="stable"):
        candidates = np.where(free & same_label[row], iou[row], 0)
        if candidates.max(initial=0) > iou_threshold:
            matched[row] = candidates.argmax()
            free[matched[row]] = False
    crowded = (matched < 0) & ((overlap > iou_threshold) & same_label & crowd).any(1)
    return matched, crowded


def _crowd(reference: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(reference.get("iscrowd", np.zeros(len(reference["boxes"]))), bool)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intersection of each pair over the area of the first, and over that of the union; both (n, m)."""
    corners = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
    intersection = corners.clip(0).prod(-1)  # (n, m)
    area, other_area = ((each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others))
    union = area[:, None] + other_area[None] - intersection
    smallest = np.finfo(float).tiny  # a box without area overlaps with nothing
    return intersection / area.clip(smallest)[:, None], intersection / union.clip(smallest)


class _Pen:
    """Draws boxes on a picture at once, and their labels at the end, over all boxes."""

    def __init__(self, picture: Image.Image, label_names: Sequence[str] | None, scale: float):
        self.canvas = ImageDraw.Draw(picture)
        self.size = picture.size
        self.label_names = label_names
        self.scale = scale
        self.width = max(2, round(max(picture.size) / 250))
        self.text_size = max(11, round(max(picture.size) / 42))
        self.font = ImageFont.load_default(self.text_size)
        self.labels: list[tuple[float, float, str, Colour, bool | None]] = []

    def box(
        self,
        box: np.ndarray,
        label: int,
        colour: Colour,
        *,
        score: float | None = None,
        right: bool | None = None,
        dashed: bool = False,
    ) -> None:
        beyond = self.size[0] + self.size[1]  # where nobody sees it, and a dash need not be drawn
        x0, y0, x1, y1 = (box * self.scale).clip(-beyond, beyond)
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        for start, end in pairwise(corners):
            self.canvas.line([start, end], PAPER, self.width + 2)  # an edge that shows on any photo
            for dash in self._dashes(start, end) if dashed else [(start, end)]:
                self.canvas.line(dash, colour, self.width)
        name = str(int(label)) if self.label_names is None else self.label_names[int(label)]
        text = f"{name} ?" if score is None else f"{name} {score:.2f}"
        self.labels.append((x0, y0, text, colour, right))

    def _dashes(self, start: tuple[float, float], end: tuple[float, float]):
        a, b = np.array(start), np.array(end)
        count = max(1, round(float(np.abs(b - a).max()) / (4 * self.width)))
        for dash in range(0, count, 2):
            yield tuple(a + (b - a) * dash / count), tuple(a + (b - a) * (dash + 1) / count)

    def write_labels(self) -> None:
        height, mark = round(1.25 * self.text_size), round(0.7 * self.text_size)
        for x, y, text, colour, right in self.labels:
            width = round(self.font.getlength(text)) + 6 + (0 if right is None else mark + 3)
            left = min(max(x, 0), max(0, self.size[0] - width))
            top = y - height if y >= height else min(max(y, 0), self.size[1] - height)
            self.canvas.rectangle((left, top, left + width, top + height), colour, PAPER)
            self.canvas.text((left + 3, top + height / 2), text, PAPER, self.font, anchor="lm")
            if right is not None:
                draw_mark(self.canvas, (left + width - mark - 3, top + (height - mark) / 2), mark, PAPER, right)


def _with_title(picture: Image.Image, title: str) -> Image.Image:
    size = max(14, picture.width // 28)
    titled = Image.new("RGB", (picture.width, picture.height + round(1.5 * size)), PAPER)
    titled.paste(picture, (0, titled.height - picture.height))
    ImageDraw.Draw(titled).text((0, round(0.7 * size)), title, UNJUDGED, ImageFont.load_default(size), anchor="lm")
    return titled
