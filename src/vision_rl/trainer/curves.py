"""A run's numbers over its steps as a picture, drawn with Pillow alone."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vision_rl.drawing import LABEL, PAPER, RIGHT, UNJUDGED, Colour


WIDTH, HEIGHT = 480, 300  # pixels of a panel
_MARGIN, _SCALE = 56, 2  # drawn larger, then reduced: Pillow draws no smooth lines
_GRID = (225, 225, 225)
_TRAINING = (150, 165, 185)

Point = tuple[float, float]  # step, value


class Panel(NamedTuple):
    """The numbers of one panel: those of training are drawn as a line, those of evaluations as a line with dots."""

    title: str
    training: Sequence[Point]
    evaluation: Sequence[Point]


def draw_curves(panels: Sequence[Panel]) -> Image.Image:
    """Draw panels side by side, over the same steps.

    Raises:
        ValueError: without a panel, or for one without a point.
    """
    points = [point for panel in panels for point in (*panel.training, *panel.evaluation)]
    if not panels or any(not (panel.training or panel.evaluation) for panel in panels):
        raise ValueError("A curve needs at least one point in each panel.")
    steps = _range([step for step, _ in points])
    picture = Image.new("RGB", (len(panels) * WIDTH * _SCALE, HEIGHT * _SCALE), PAPER)
    for place, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(picture), panel, place * WIDTH * _SCALE, steps)
    return picture.resize((len(panels) * WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _draw_panel(canvas: ImageDraw.ImageDraw, panel: Panel, left: float, steps: tuple[float, float]) -> None:
    values = _range([value for _, value in (*panel.training, *panel.evaluation)])
    width, height, margin = WIDTH * _SCALE, HEIGHT * _SCALE, _MARGIN * _SCALE
    x0, x1, y0, y1 = left + margin, left + width - margin / 2, height - margin, margin * 0.8

    def at(point: Point) -> Point:
        x, y = ((value - low) / (high - low) for value, (low, high) in zip(point, (steps, values), strict=True))
        return x0 + x * (x1 - x0), y0 + y * (y1 - y0)

    font, small = ImageFont.load_default(15 * _SCALE), ImageFont.load_default(11 * _SCALE)
    canvas.text((x0, margin * 0.35), panel.title, UNJUDGED, font, anchor="lm")
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = values[0] + share * (values[1] - values[0])
        y = at((steps[0], value))[1]
        canvas.line((x0, y, x1, y), _GRID, _SCALE)
        canvas.text((x0 - 4 * _SCALE, y), f"{value:.3g}", LABEL, small, anchor="rm")
    for step in steps:
        canvas.text((at((step, values[0]))[0], y0 + 12 * _SCALE), f"{step:.0f}", LABEL, small, anchor="mm")
    canvas.text(((x0 + x1) / 2, y0 + 12 * _SCALE), "step", LABEL, small, anchor="mm")
    _draw_line(canvas, [at(point) for point in panel.training], _TRAINING, dots=False)
    _draw_line(canvas, [at(point) for point in panel.evaluation], RIGHT, dots=True)


def _draw_line(canvas: ImageDraw.ImageDraw, points: list[Point], colour: Colour, dots: bool) -> None:
    if len(points) > 1:
        canvas.line(points, colour, 2 * _SCALE, joint="curve")
    radius = 3 * _SCALE
    for x, y in points if dots or len(points) == 1 else ():
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
