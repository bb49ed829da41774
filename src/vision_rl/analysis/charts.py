"""Line charts as SVG, without a plotting library: sharp at any size, and text that a screen reader finds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


COLOURS = (
    "#1d4ed8",
    "#c2410c",
    "#15803d",
    "#7e22ce",
    "#0e7490",
    "#a16207",
)  # told apart by colour-blind readers, mostly
WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, BOTTOM = 58, 24, 40  # margins of the plot; the last label of the x axis is wider than its tick
TITLE, LEGEND, LETTER = 24, 17, 6.4  # height of the title and of a row of the legend; width of a letter, about


@dataclass(frozen=True)
class Line:
    """One line of a chart; points whose `y` is None or not finite are gaps.

    Args:
        name: what the legend says; empty: it is left out there.
        x: of the points. y: of the points.
        low, high: of a band around the line.
        colour: a place in `COLOURS`.
        dashed: a reference to compare with.
        faint: thin and pale, as for single values below their running mean.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int = 0
    dashed: bool = False
    faint: bool = False


def line_chart(title: str, lines: Sequence[Line], x_label: str = "", log_x: bool = False) -> str:
    """The chart as an SVG element that can stand alone or in a page.

    Raises:
        ValueError: where there is no point to draw.
    """
    points = [(line.x[place], line.y[place]) for line in lines for run in _runs(line) for place in run]
    x, y = [value for value, _ in points], [value for _, value in points if value is not None]
    y += [
        edge
        for line in lines
        for edge in (*(line.low or ()), *(line.high or ()))
        if edge is not None and _finite(edge)
    ]
    if not points:
        raise ValueError(f"The chart {title!r} has no points.")
    names, top = _legend([line for line in lines if line.name])
    frame = _Frame(x, y, log_x, top)
    summary = f"{title}; lines: {', '.join(line.name for line in lines if line.name)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(summary)}" font-family="system-ui, sans-serif" font-size="12" fill="#334155">',
            f'<text x="{LEFT}" y="16" font-size="13.5" font-weight="600" fill="#0f172a">{escape(title)}</text>',
            *frame.axes(x_label),
            *(_band(line, frame) for line in lines if line.low is not None and line.high is not None),
            *(part for line in sorted(lines, key=lambda line: not line.faint) for part in _strokes(line, frame)),
            *names,
            "</svg>",
        ]
    )


class _Frame:
    """Where values are on the picture."""

    def __init__(self, x: Sequence[float], y: Sequence[float], log_x: bool, top: float):
        self.log_x, self.top = log_x and min(x) > 0, top
        low, high = self._scaled(min(x)), self._scaled(max(x))
        self.x_range = _widened(low, high, margin=0.0, room=0.5 if self.log_x else 0.5 * abs(high) or 0.5)
        self.y_range = _widened(min(y), max(y), margin=0.06, room=0.5 * abs(max(y)) or 0.5)

    def _scaled(self, x: float) -> float:
        return math.log10(x) if self.log_x else x

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (self._scaled(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - self.top - BOTTOM)

    def axes(self, x_label: str) -> list[str]:
        parts = []
        for value in ticks(*self.y_range):
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e2e8f0"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        for value in self._x_ticks():
            x = self.x(value)
            parts.append(f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v4" stroke="#94a3b8"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(value)}</text>')
        parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="#94a3b8"/>')
        if x_label:
            middle = (LEFT + WIDTH - RIGHT) / 2
            parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        return parts

    def _x_ticks(self) -> list[float]:
        if not self.log_x:
            return ticks(*self.x_range)
        low, high = self.x_range
        return [10.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    apart = (high - low) / count
    power = 10.0 ** math.floor(math.log10(apart))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * apart)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _widened(low: float, high: float, margin: float, room: float) -> tuple[float, float]:
    """Widen the range by the share `margin` at both ends, or by `room` where it has but one value."""
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


def _runs(line: Line) -> list[list[int]]:
    """Places of points that follow one another without a gap."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(line.y):
        if _finite(value) and _finite(line.x[place]):
            runs[-1].append(place)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _strokes(line: Line, frame: _Frame) -> list[str]:
    colour, dash = COLOURS[line.colour % len(COLOURS)], ' stroke-dasharray="5 4"' if line.dashed else ""
    width, opacity = (1, ' opacity="0.3"') if line.faint else (2, "")
    parts = []
    for run in _runs(line):
        points = [(frame.x(line.x[place]), frame.y(line.y[place])) for place in run]  # type: ignore[arg-type]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}{opacity}/>')
        if len(points) <= 12 and not (line.faint or line.dashed):
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
    return parts


def _band(line: Line, frame: _Frame) -> str:
    assert line.low is not None and line.high is not None
    known = [place for place, pair in enumerate(zip(line.low, line.high, strict=True)) if all(map(_finite, pair))]
    edge = [(line.x[place], line.high[place]) for place in known]
    edge += [(line.x[place], line.low[place]) for place in reversed(known)]
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in edge)  # type: ignore[arg-type]
    return f'<path d="M{path}Z" fill="{COLOURS[line.colour % len(COLOURS)]}" opacity="0.13"/>' if edge else ""


def _legend(lines: Sequence[Line]) -> tuple[list[str], float]:
    """The lines' names below the title, row after row, and where the plot begins below them."""
    parts, x, row = [], float(LEFT), 0
    for line in lines:
        width = 26 + LETTER * len(line.name) + 14
        if x > LEFT and x + width > WIDTH:
            x, row = LEFT, row + 1
        y, colour = TITLE + LEGEND * row + 12, COLOURS[line.colour % len(COLOURS)]
        dash = ' stroke-dasharray="4 3"' if line.dashed else ""
        parts.append(f'<path d="M{x:.1f} {y - 4}h20" stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts.append(f'<text x="{x + 26:.1f}" y="{y}">{escape(line.name)}</text>')
        x += width
    return parts, TITLE + (LEGEND * (row + 1) if lines else 0) + 8


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float) -> str:
    """Short: 0.25, 1,000, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"
