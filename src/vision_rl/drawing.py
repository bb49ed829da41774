"""What the pictures of all tasks have in common: the colours of right and wrong, marks, and pictures side by side."""

from PIL import Image, ImageDraw


RIGHT = (21, 128, 61)
WRONG = (200, 30, 30)
UNJUDGED = (40, 40, 40)
PAPER = (255, 255, 255)

Colour = tuple[int, int, int]


def draw_grid(pictures: list[Image.Image], columns: int = 4, gap: int = 16) -> Image.Image:
    """Pictures side by side, row after row, each in a cell as large as the largest of them."""
    if not pictures:
        raise ValueError("There are no pictures to lay out: pass at least one.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = max(p.width for p in pictures) + gap, max(p.height for p in pictures) + gap
    grid = Image.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    for index, picture in enumerate(pictures):
        grid.paste(picture, (gap + index % columns * width, gap + index // columns * height))
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
