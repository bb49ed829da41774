"""Figure 5 of the paper, of one model or of one before and after tuning: quantiles, best of n, likeliest of n."""

from collections.abc import Mapping, Sequence
from typing import Any

from vision_rl.analysis.charts import Line, line_chart
from vision_rl.analysis.noise import CONFIDENCE


DASHED = " (dashed: the greedy answer)"


def quantile_chart(models: Mapping[str, dict[str, Any]]) -> str:
    """The reward at each quantile of an image's samples, a mean over the images.

    `models` are `RewardSamples.summary()` by the model's name.
    """
    lines = []
    for colour, (name, summary) in enumerate(models.items()):
        levels = summary["quantiles"]["levels"]
        lines.append(_line(name, levels, summary["quantiles"], colour))
        lines.append(_greedy([levels[0], levels[-1]], summary, colour))
    return line_chart("Reward by quantile of the samples", lines, f"quantile{DASHED}")


def best_of_n_chart(models: Mapping[str, dict[str, Any]]) -> str:
    """The expected reward of the best of n samples, which needs the reward to choose."""
    return _of_n("Best of n samples", "best_of_n", models)


def likeliest_of_n_chart(models: Mapping[str, dict[str, Any]]) -> str:
    """The expected reward of the likeliest of n samples, which the model chooses by itself."""
    return _of_n("Likeliest of n samples", "likeliest_of_n", models)


def _of_n(title: str, key: str, models: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for colour, (name, summary) in enumerate(models.items()):
        sizes = summary[key]["n"]
        lines.append(_line(name, sizes, summary[key], colour))
        lines.append(_greedy([sizes[0], sizes[-1]], summary, colour))
    return line_chart(title, lines, f"n samples an image{DASHED}", log_x=True)


def _line(name: str, x: Sequence[float], points: dict[str, list], colour: int) -> Line:
    """Make the line of `points` over `x`, with the 95 % interval of the mean over images."""
    pairs = list(zip(points["mean"], points["error"], strict=True))
    low, high = (
        [None if error is None else mean + sign * CONFIDENCE * error for mean, error in pairs] for sign in (-1, 1)
    )
    return Line(name, x, points["mean"], low, high, colour)


def _greedy(x: list[float], summary: dict[str, Any], colour: int) -> Line:
    return Line("", x, [summary["greedy"]["mean"]] * 2, colour=colour, dashed=True)
