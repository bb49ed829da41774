"""Completions on one sheet, side by side: reward and advantage below each."""

import math
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vision_rl.drawing import LABEL, PAPER, RIGHT, UNJUDGED, WRONG, Colour


WIDEST, TALLEST = 512, 512  # pixels of a picture on the sheet
NARROWEST = 240  # of a cell: room for its numbers
_GAP, _TEXT = 20, 19
_LINE = round(1.4 * _TEXT)
_EDGE = (215, 215, 215)


class Cell(NamedTuple):
    """One completion: what stands above it, its picture, reward, advantage, and the reward's parts if there are several."""

    name: str
    picture: Image.Image
    reward: float
    advantage: float | None
    parts: dict[str, float]


def draw_sheet(title: str, rows: list[list[Cell]]) -> Image.Image:
    """Draw a title and rows of completions.

    A bar of the advantage's colour, green above 0 and red below, joins each picture with its numbers: what is going to
    be more likely, and what less.
    """
    rows = [[cell._replace(picture=_fitted(cell.picture)) for cell in cells] for cells in rows]
    width = max(NARROWEST, *(cell.picture.width for cells in rows for cell in cells))
    columns = max(len(cells) for cells in rows)
    num_lines = 1 + max(len(cell.parts) for cells in rows for cell in cells)
    heights = [max(cell.picture.height for cell in cells) for cells in rows]
    below = 6 + num_lines * _LINE  # the bar and the numbers
    title_font, font, small = (ImageFont.load_default(size) for size in (1.25 * _TEXT, _TEXT, 0.8 * _TEXT))
    top = round(2.4 * _TEXT)
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP) + _GAP, top + sum(_LINE + height + below + _GAP for height in heights)),
        PAPER,
    )
    canvas = ImageDraw.Draw(sheet)
    canvas.text((_GAP, top / 2 + 4), title, UNJUDGED, title_font, anchor="lm")
    for cells, height in zip(rows, heights, strict=True):
        canvas.line((_GAP, top, sheet.width - _GAP, top), _EDGE)
        for column, cell in enumerate(cells):
            left, bottom = _GAP + column * (width + _GAP), top + _LINE + height
            canvas.text((left, top + _LINE / 2), cell.name, LABEL, small, anchor="lm")
            sheet.paste(cell.picture, (left, top + _LINE))
            canvas.rectangle((left, bottom, left + width - 1, bottom + 4), _colour_of(cell.advantage))
            _write_numbers(canvas, cell, left, bottom + 6, width, font, small)
        top += _LINE + height + below + _GAP
    return sheet


def _write_numbers(canvas: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, width: int, font, small) -> None:
    """Write the reward on the left, the advantage on the right, and the parts of the reward below."""
    middle = top + _LINE / 2
    canvas.text((left, middle), f"reward {number(cell.reward)}", UNJUDGED, font, anchor="lm")
    if cell.advantage is not None:
        text = f"advantage {number(cell.advantage, sign=True)}"
        canvas.text((left + width, middle), text, _colour_of(cell.advantage), font, anchor="rm")
    for line, (name, value) in enumerate(cell.parts.items(), start=1):
        canvas.text((left, middle + line * _LINE), f"{name} {number(value)}", LABEL, small, anchor="lm")


def number(value: float, sign: bool = False) -> str:
    """Three digits that count, with a sign if asked for; NaN, where a reward did not apply, as "none"."""
    return "none" if math.isnan(value) else f"{value:+.3g}" if sign and value else f"{value:.3g}"


def _colour_of(advantage: float | None) -> Colour:
    if advantage is None or math.isnan(advantage) or advantage == 0:
        return LABEL
    return RIGHT if advantage > 0 else WRONG


def _fitted(picture: Image.Image) -> Image.Image:
    scale = min(1, WIDEST / picture.width, TALLEST / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
