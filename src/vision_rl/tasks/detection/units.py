"""Boxes in other units or forms than x, y, width, height in pixels, known by what could hardly be so otherwise."""

import numpy as np


FEW = 10  # boxes, of which nothing is said
ROUNDING = 1.0  # pixels
ONE_PIXEL = 1.05  # where shares of an image end, rounded
HUNDRED = 100.5  # where percent do
EXPECTED = "`bbox` must be x, y, width, height in pixels"


def other_unit(boxes: np.ndarray, column: str) -> str | None:
    """Say that all boxes `(n, 4)` of a data set look like shares of their image and not like pixels; `None` if they do not."""
    if len(boxes) and np.abs(boxes).max() <= ONE_PIXEL:
        return f"All {len(boxes)} boxes in column `{column}` lie within one pixel. {EXPECTED}: are these shares of the image, from 0 to 1?"
    return None


def other_form(boxes: np.ndarray, sizes: np.ndarray, furthest: float, column: str) -> str | None:
    """Say in which other form boxes `(n, 4)` in images of `sizes (n, 2)`, width and height, seem to be; `None`: nothing odd.

    Args:
        boxes: of some images.
        sizes: of the image of each.
        furthest: the largest right or lower end of all boxes of the data set.
        column: where they stand, for the sentence.
    """
    start, extent = boxes[:, :2], boxes[:, 2:]
    leaving = ((start < -ROUNDING) | (start + extent > sizes + ROUNDING)).any(1)
    number = int(leaving.sum())
    told = f"{number} of {len(boxes)} boxes in column `{column}` leave their image. {EXPECTED}: are these"
    if number > len(boxes) / 2:
        return f"{told} x0, y0, x1, y1?"
    if len(boxes) < FEW:
        return None
    if furthest <= HUNDRED and furthest > HUNDRED / 2 and (sizes >= 2 * HUNDRED).all():
        return (
            f"All boxes in column `{column}` end within {furthest:g} pixels of the upper left corner, in images with sides "
            f"of {int(sizes.min())} pixels and more. {EXPECTED}: are these percent of the image?"
        )
    could_be_corners = ((extent > start) & (start >= -ROUNDING) & (extent <= sizes + ROUNDING)).all()
    large = (extent > sizes / 2).any(1).mean()  # a large object's box is wider than its place is far from the left
    if could_be_corners and (number or large < 0.5):
        return (
            f"In all {len(boxes)} boxes in column `{column}` the third number is larger than the first, and the fourth "
            f"larger than the second. {EXPECTED}: are these x0, y0, x1, y1?"
        )
    could_be_centres = ((start >= extent / 2 - ROUNDING) & (start + extent / 2 <= sizes + ROUNDING)).all()
    if could_be_centres and number > 0.05 * len(boxes):
        return f"{told} the centre and then width and height? Read that way, none leaves its image."
    return None
