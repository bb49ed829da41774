"""What the pictures of all tasks have in common: the colours of right and wrong, marks, text below, and side by side."""

import itertools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


RIGHT = (21, 128, 61)
WRONG = (200, 30, 30)
UNJUDGED = (40, 40, 40)
PAPER = (255, 255, 255)
LABEL = (120, 120, 120)

Colour = tuple[int, int, int]
MAX_SIDE = 2**14  # of a picture in pixels
_SHOWN_SIDE = 512  # pixels: a small image is enlarged while it fits


def at_width(image: Image.Image, width: int | None = None) -> Image.Image:
    """The image in RGB, `width` pixels wide. Pixels of a small image stay squares; a large one is smoothed.

    Without a width a small image is enlarged by the whole number that keeps it within 512 pixels, and a large one stays as it
    is.

    Raises:
        ValueError: for a width whose picture would fill the memory, or have no pixel.
    """
    width = image.width * max(1, _SHOWN_SIDE // max(image.size)) if width is None else width
    height = round(image.height * width / max(1, image.width))
    if not (1 <= width <= MAX_SIDE and height <= MAX_SIDE):
        raise ValueError(
            f"The picture would have {width} x {height} pixels, but a side may have 1 to {MAX_SIDE}: choose another width."
        )
    enlarges = Image.Resampling.NEAREST if 2 * image.width <= width else Image.Resampling.BICUBIC
    return image.convert("RGB").resize((width, max(1, height)), enlarges)


def draw_grid(
    pictures: list[Image.Image], columns: int = 4, gap: int = 16, headings: Sequence[str] = ()
) -> Image.Image:
    """Pictures side by side, row after row; `headings` name the columns.

    Columns are as wide as the widest picture of all, and a row is as high as the highest of its own.
    """
    if not pictures:
        raise ValueError("There are no pictures to lay out: pass at least one.")
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(picture.width for picture in pictures) + gap
    size = max(12, width // 16)
    top = round(1.6 * size) if headings else 0
    tops = list(itertools.accumulate((max(p.height for p in row) + gap for row in rows), initial=top + gap))
    grid = Image.new("RGB", (columns * width + gap, tops[-1]), PAPER)
    canvas, font = ImageDraw.Draw(grid), ImageFont.load_default(size)
    for column, heading in enumerate(headings):
        canvas.text((gap + column * width + (width - gap) // 2, gap + top // 2), heading, UNJUDGED, font, anchor="mm")
    for y, row in zip(tops, rows, strict=False):
        for column, picture in enumerate(row):
            grid.paste(picture, (gap + column * width, y))
    return grid


def draw_mark(
    canvas: ImageDraw.ImageDraw, corner: tuple[float, float], size: float, colour: Colour, right: bool
) -> None:
    """A tick or a cross in the square of side `size` at its upper left `corner`.

    It stands beside every colour: one reader in twenty cannot tell this green from this red.
    """
    if right:
        strokes = [[(0.05, 0.55), (0.35, 0.9), (0.95, 0.15)]]
    else:
        strokes = [[(0.15, 0.15), (0.85, 0.85)], [(0.85, 0.15), (0.15, 0.85)]]
    for stroke in strokes:
        points = [(corner[0] + x * size, corner[1] + y * size) for x, y in stroke]
        canvas.line(points, fill=colour, width=max(2, round(size / 6)), joint="curve")


def draw_text_below(
    image: Image.Image, lines: Sequence[tuple[str, str, Colour]], width: int | None = None
) -> Image.Image:
    """The image with lines of text below it, broken where they are too long.

    Args:
        image: of any mode; it is brought to `width`.
        lines: a label, written small and grey and left out where it is empty; the text; and the text's colour.
        width: of the picture in pixels; without one a small image is enlarged (see `at_width`), to no less than 320, where
            text has room.
    """
    photo = at_width(image, width if width is not None else max(320, at_width(image).width))
    width = photo.width
    size = max(12, width // 22)
    font, label_font = ImageFont.load_default(size), ImageFont.load_default(0.8 * size)
    margin, line_height = size // 2, round(1.3 * size)
    label_width = max(round(label_font.getlength(label)) for label, _, _ in lines)
    left = margin + (label_width + margin if label_width else 0)
    broken = [(label, _broken(text, font, width - left - margin), colour) for label, text, colour in lines]

    height = photo.height + line_height * sum(len(rows) for _, rows, _ in broken) + 2 * margin
    picture = Image.new("RGB", (width, height), PAPER)
    picture.paste(photo)
    canvas = ImageDraw.Draw(picture)
    baseline = photo.height + margin + size
    for label, rows, colour in broken:
        canvas.text((margin, baseline), label, LABEL, label_font, anchor="ls")
        for row in rows:
            canvas.text((left, baseline), row, colour, font, anchor="ls")
            baseline += line_height
    return picture


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of whole words no wider than `width`; a word that is wider itself is broken too."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while len(word) > 1 and font.getlength(word) > width:
            fits = next(n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
