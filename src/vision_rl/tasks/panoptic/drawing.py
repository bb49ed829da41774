"""A panoptic map over its image: a colour a category, borders between segments, names where there is room."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import PAPER, RIGHT, UNJUDGED, WRONG, Colour, at_width, draw_mark
from vision_rl.tasks.panoptic.quality import match_segments
from vision_rl.tasks.panoptic.segments import (
    VOID,
    Segmentation,
    Segments,
    places_of,
    read_segments,
    resize_nearest,
    resized,
)


MISSED = (29, 78, 216)
_GOLDEN_RATIO = 0.618034  # steps of the hue: neighbours in the list of categories differ, however many there are
_Label = tuple[str, Colour, bool | None]


@naming_arguments
def draw(
    image: Image.Image,
    completion: Segmentation,
    reference: Segmentation | None = None,
    width: int | None = None,
    categories: Sequence[Mapping[str, Any]] | None = None,
    opacity: float = 0.55,
) -> Image.Image:
    """The image with its segments, void left as it is.

    With a reference, a segment's name is green with a tick where panoptic quality counts it as a match, and red with a
    cross where as a false positive; it is dark where void or a crowd excuses it, and on all segments without a
    reference. True segments that are missed have a blue outline, and their name a question mark.

    Args:
        image: of any mode.
        completion: `(map, segments_info)`; of another size than the image, it is brought to the image's.
        reference: the true one.
        width: of the drawn image in pixels; without one a small image is enlarged while it fits into 512 pixels.
        categories: dicts with `id` and `name`, whose names are written; without them the ids are.
        opacity: of the colours, 0 to 1.

    Returns:
        An RGB picture of this width.
    """
    photo = at_width(image, width)
    size = (photo.height, photo.width)
    names = {category["id"]: str(category["name"]) for category in categories or []}
    places = {category["id"]: place for place, category in enumerate(categories or [])}
    prediction = resized(completion, (image.height, image.width))
    found = read_segments(prediction)
    labels: list[tuple[np.ndarray, _Label]] = []

    pixels = np.asarray(photo, np.float32)
    shown = resize_nearest(found.map, size)
    colours = np.array([*(category_colour(places.get(c, int(c))) for c in found.categories), PAPER], np.float32)
    paint = colours[places_of(shown, found.ids)]  # (height, width, 3); void has place -1
    pixels = np.where((shown != VOID)[..., None], opacity * paint + (1 - opacity) * pixels, pixels)
    pixels = np.where(_borders(shown, max(1, max(size) // 400))[..., None], PAPER, pixels)

    verdicts: dict[int, _Label] = {}
    if reference is not None:
        reference = resized(reference, (image.height, image.width))
        true = read_segments(reference)
        verdicts, missed = _judged(prediction, reference, found, true, names)
        true_shown = resize_nearest(true.map, size)
        for place in missed:
            name = names.get(true.categories[place], str(true.categories[place]))
            labels.append((true_shown == true.ids[place], (f"{name} ?", MISSED, None)))
    for place, (segment, category) in enumerate(zip(found.ids, found.categories, strict=True)):
        unjudged: _Label = (names.get(category, str(category)), UNJUDGED, None)
        labels.append((shown == segment, verdicts.get(place, unjudged)))
    for outlined, (_, colour, _) in labels:
        if colour == MISSED:
            pixels = np.where(_borders(outlined, max(2, max(size) // 250))[..., None], MISSED, pixels)

    picture = Image.fromarray(pixels.round().astype(np.uint8))
    _write(picture, labels)
    return picture


def category_colour(place: int) -> Colour:
    """A colour for the category at a place of the list: hues that differ, in three strengths."""
    saturation, value = ((0.85, 0.95), (0.6, 0.75), (0.95, 0.6))[place % 3]
    red, green, blue = (
        round(255 * part) for part in colorsys.hsv_to_rgb(place * _GOLDEN_RATIO % 1, saturation, value)
    )
    return red, green, blue


def _judged(
    prediction: Segmentation, reference: Segmentation, found: Segments, true: Segments, names: dict[int, str]
) -> tuple[dict[int, _Label], np.ndarray]:
    """The labels of the predicted segments that count, by place, and the places of the true segments that are missed."""
    matches = match_segments(prediction, reference)
    name = [names.get(category, str(category)) for category in found.categories]
    right = {
        place: (f"{name[place]} {iou:.2f}", RIGHT, True)
        for place, iou in zip(matches.matched[:, 0], matches.ious, strict=True)
    }
    return right | {place: (name[place], WRONG, False) for place in matches.spurious}, matches.missed


def _borders(ids: np.ndarray, width: int) -> np.ndarray:
    """The pixels `(H, W)` where segments meet, as lines about `width` pixels wide."""
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    return edge if width == 1 else ndimage.binary_dilation(edge, iterations=width // 2)


def _write(picture: Image.Image, labels: list[tuple[np.ndarray, _Label]]) -> None:
    """Write each label inside its segment if there is room, else its mark alone; larger segments come first."""
    canvas = ImageDraw.Draw(picture)
    text_size = max(11, round(max(picture.size) / 42))
    font = ImageFont.load_default(text_size)
    height, mark = round(1.25 * text_size), round(0.7 * text_size)
    free = np.ones(picture.size[::-1], bool)
    for mask, (text, colour, right) in sorted(labels, key=lambda label: -np.count_nonzero(label[0])):
        mark_width = 0 if right is None else mark + 3
        for shown in (text, "") if right is not None else (text,):
            width = round(font.getlength(shown)) + 6 + mark_width if shown else mark + 6
            corner = _room(mask & free, height, width)
            if corner is not None:
                break
        else:
            continue
        left, top = corner
        free[top : top + height, left : left + width] = False
        canvas.rectangle((left, top, left + width, top + height), colour, PAPER)
        canvas.text((left + 3, top + height / 2), shown, PAPER, font, anchor="lm")
        if right is not None:
            draw_mark(canvas, (left + width - mark - 3, top + (height - mark) / 2), mark, PAPER, right)


def _room(mask: np.ndarray, height: int, width: int) -> tuple[int, int] | None:
    """Left and top of a rectangle inside the mask, its centre as far from the border as can be; None without room."""
    if height > mask.shape[0] or width > mask.shape[1]:
        return None
    covered = np.pad(mask, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)  # (H + 1, W + 1)
    inside = (
        covered[height:, width:] - covered[:-height, width:] - covered[height:, :-width] + covered[:-height, :-width]
    )
    tops, lefts = np.nonzero(inside == height * width)
    if len(tops) == 0:
        return None
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))
    deepest = depth[tops + height // 2 + 1, lefts + width // 2 + 1].argmax()
    return int(lefts[deepest]), int(tops[deepest])
