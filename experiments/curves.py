"""Curves of trainings as lines of a chart."""

from collections.abc import Sequence

import numpy as np

from vision_rl.analysis import charts


def line_over_seeds(
    curves: Sequence[Sequence[dict]], name: str, title: str, colour: int, dashed: bool = False
) -> charts.Line:
    """The mean of a number over the seeds, at each step; the band is from the lowest to the highest seed.

    Args:
        curves: of each seed its points, with `step` and numbers by name.
        dashed: without a band.
    """
    values = np.array([[point[name] for point in points] for points in curves])  # (seeds, steps)
    mean, low, high = (over(values, axis=0).tolist() for over in (np.mean, np.min, np.max))
    steps = [point["step"] for point in curves[0]]
    return charts.Line(title, steps, mean, *([] if dashed else [low, high]), colour=colour, dashed=dashed)
