"""A run's log as curves: the reward that was tuned for, beside the metric that is meant (paper, section 5, figure 6)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from vision_rl.analysis.charts import Line, line_chart
from vision_rl.trainer.checkpoints import checkpoints_in


STATE = "trainer_state.json"
BOOKKEEPING = ("epoch", "step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
RUNNING_MEAN = 20  # log lines


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log lines of a run, in order; those of its newest checkpoint where it has not ended. Empty where there are none.

    A run that had ended may have been continued and then interrupted: a later checkpoint of more steps has more of its log. An
    earlier one is of a run before, in the same folder.

    Raises:
        ValueError: for a file that is no log of Trainer's. Of checkpoints only the newest is read, and only where it counts.
    """
    newest = next((each for each in reversed(checkpoints_in(folder)) if (each / STATE).is_file()), None)
    own = folder / STATE
    step, lines = _read_state(own) if own.is_file() else (-1, [])
    if newest is not None and int(newest.name.rpartition("-")[2]) > step:
        saved = newest / STATE
        if step < 0 or saved.stat().st_mtime_ns > own.stat().st_mtime_ns:
            _, lines = _read_state(saved)
    return lines


def curve(log: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of what the log calls by this name."""
    points = [(line["step"], line[name]) for line in log if _is_number(line.get(name))]
    return [step for step, _ in points], [value for _, value in points]


def evaluated_names(log: Sequence[dict[str, Any]]) -> list[str]:
    """List the names of what evaluations have measured, the reward first."""
    names = dict.fromkeys(
        name
        for line in log
        for name, value in line.items()
        if name.startswith("eval_") and name not in BOOKKEEPING and _is_number(value)
    )
    return sorted(names, key=lambda name: (name != "eval_reward", "rewards/" in name or "completions/" in name))


def running_mean(values: Sequence[float], count: int = RUNNING_MEAN) -> list[float]:
    """Each value's mean with those before it, at most `count`."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - count, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def reward_and_metrics(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The curves of figure 6 as plain numbers, and how the evaluated reward and each metric go together.

    `rank_correlation` is Spearman's, over the evaluations: near 1 the metric rises with the reward; where it is low or
    negative, the reward buys something else.
    """
    steps, rewards = curve(log, "reward")
    evaluated: dict[str, dict[str, Any]] = {}
    for name in evaluated_names(log):
        at, values = curve(log, name)
        evaluated[name] = {"step": at, "value": values}
        if name != "eval_reward":
            evaluated[name]["rank_correlation"] = _rank_correlation(curve(log, "eval_reward"), (at, values))
    return {"sampled_reward": {"step": steps, "value": rewards}, "evaluated": evaluated}


def reward_chart(log: Sequence[dict[str, Any]]) -> str | None:
    """The reward of samples and of greedy answers over the run; None where the log has neither."""
    sampled, greedy = curve(log, "reward"), curve(log, "eval_reward")
    lines = []
    if sampled[0]:
        lines.append(Line("", sampled[0], sampled[1], faint=True))
        lines.append(Line("samples, running mean", sampled[0], running_mean(sampled[1])))
    if greedy[0]:
        lines.append(Line("greedy, evaluation", *greedy, colour=1))
    return line_chart("Reward", lines, "update step") if lines else None


def metric_charts(log: Sequence[dict[str, Any]], first: Sequence[str] = ()) -> list[str]:
    """What evaluations have measured besides the reward, a chart each of what has changed.

    `first` are names, without `eval_`, that come before others.
    """
    place = {f"eval_{name}": number for number, name in enumerate(first)}
    names = sorted(evaluated_names(log), key=lambda name: place.get(name, len(place)))
    return [
        line_chart(name.removeprefix("eval_"), [Line("", *curve(log, name), colour=2)], "update step")
        for name in names
        if name != "eval_reward" and len(set(curve(log, name)[1])) > 1
    ]


def _read_state(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """The update steps that were done, and the log lines."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        lines = [line for line in state["log_history"] if isinstance(line["step"], int)]
        return int(state.get("global_step", 0)), lines
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not the log of a run: {type(error).__name__}: {error}") from error


def _rank_correlation(first: tuple, second: tuple) -> float | None:
    """Over the steps that both have; None for fewer than 3, or where one does not change."""
    a, b = dict(zip(*first, strict=True)), dict(zip(*second, strict=True))
    steps = [step for step in a if step in b]
    values, others = ([of_steps[step] for step in steps] for of_steps in (a, b))
    if len(steps) < 3 or np.ptp(values) == 0 or np.ptp(others) == 0:
        return None
    return float(spearmanr(values, others).statistic)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
