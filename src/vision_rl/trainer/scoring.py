"""Calling reward functions the way TRL does, and saying which reward and which row is at fault when one fails."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from vision_rl.rewards import RewardFunc, RewardOutput, TokenTargets
from vision_rl.trainer import checks
from vision_rl.trainer.collator import BatchColumns


@dataclass
class Scores:
    """What the rewards say of `N = B*G` completions; NaN where one does not apply."""

    rewards: torch.Tensor  # (N,) weighted sum
    per_function: torch.Tensor  # (N, F)
    token_targets: list[TokenTargets]
    logged: dict[str, float] = field(default_factory=dict)

    def to(self, device) -> "Scores":
        return replace(self, rewards=self.rewards.to(device), per_function=self.per_function.to(device))


class RewardSum:
    """The weighted sum of one or several rewards.

    Args:
        reward_funcs: callables in TRL's form, or evaluate modules whose result has a list `rewards`.
        weights: one a reward; default all 1.
    """

    def __init__(self, reward_funcs: RewardFunc | list[RewardFunc], weights: list[float] | None = None):
        functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not functions:
            raise ValueError("reward_funcs is empty: give at least one reward.")
        self.names = _unique([_name_of(function) for function in functions])
        self.functions = [_as_function(function, name) for function, name in zip(functions, self.names, strict=True)]
        if weights is not None and len(weights) != len(functions):
            raise ValueError(f"reward_weights has {len(weights)} numbers for {len(functions)} reward functions.")
        self.weights = torch.tensor(weights if weights is not None else [1.0] * len(functions), dtype=torch.float32)

    def check(self, columns: list[str], has_references: bool) -> None:
        for name, function in zip(self.names, self.functions, strict=True):
            checks.check_reward_signature(name, function, columns, has_references)

    def __call__(
        self, completions: list, completion_ids: list[list[int]], columns: BatchColumns, rows: list[int], state
    ) -> Scores:
        """Score the completions of the images `rows`, `G` adjacent ones each; columns are repeated `G` times."""
        if len(completions) != len(completion_ids):
            raise ValueError(f"{len(completion_ids)} completions were decoded into {len(completions)} objects.")
        repeats = len(completions) // len(rows)
        logged: dict[str, float] = {}
        arguments = {name: _repeat(values, repeats) for name, values in columns.columns.items()}
        if columns.references is not None:
            arguments["references"] = _repeat(columns.references, repeats)
        arguments |= {"completions": completions, "completion_ids": completion_ids, "prompts": [""] * len(completions)}
        constants = {"trainer_state": state, "log_metric": logged.__setitem__, "log_extra": _ignore}

        token_targets, values = [], []
        for name, function in zip(self.names, self.functions, strict=True):
            output = _call(name, function, arguments, constants, _repeat(rows, repeats))
            if isinstance(output, RewardOutput):
                if output.token_targets is not None:
                    token_targets.append(output.token_targets)
                output = output.rewards
            values.append(_as_tensor(name, output, completions, _repeat(rows, repeats)))
        per_function = torch.stack(values, dim=1)  # (N, F)
        rewards = (per_function * self.weights).nansum(1).masked_fill(per_function.isnan().all(1), float("nan"))
        return Scores(rewards, per_function, token_targets, logged)


def _call(name: str, function: Callable, arguments: dict[str, list], constants: dict, rows: list[int]):
    try:
        return _run(function, {**arguments, **constants})
    except Exception as error:
        culprit = _first_failing(function, arguments, constants, len(rows))
        where = "" if culprit is None else f" on row {rows[culprit]}, completion {arguments['completions'][culprit]!r}"
        raise RuntimeError(f"The reward `{name}` raised {type(error).__name__}{where}: {error}") from error


def _first_failing(function: Callable, arguments: dict[str, list], constants: dict, count: int) -> int | None:
    """The first completion that fails alone too, to name it; `None` where only the batch as a whole fails."""
    for i in range(count):
        try:
            _run(function, {**{name: values[i : i + 1] for name, values in arguments.items()}, **constants})
        except Exception:
            return i
    return None


def _run(function: Callable, arguments: dict):
    output = function(**arguments)
    if inspect.iscoroutine(output):
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs an event loop
            return thread.submit(asyncio.run, output).result()
    return output


def _as_tensor(name: str, rewards, completions: list, rows: list[int]) -> torch.Tensor:
    """`(N,)` float32, `None` as NaN; a reward that is itself NaN, or no number, is an error."""
    if isinstance(rewards, torch.Tensor) or hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, list | tuple):
        raise TypeError(f"The reward `{name}` returned a {type(rewards).__name__}; it must return a list of floats.")
    if len(rewards) != len(completions):
        raise ValueError(f"The reward `{name}` returned {len(rewards)} rewards for {len(completions)} completions.")
    for i, value in enumerate(rewards):
        problem = None
        if value is not None:
            try:
                number = float(value)
            except (TypeError, ValueError):
                problem = f"a {type(value).__name__}"
            else:
                problem = None if number - number == 0 else f"{number}"  # NaN and infinities
        if problem:
            raise ValueError(
                f"The reward `{name}` returned {problem} for row {rows[i]}, completion {completions[i]!r}; it must "
                "return a finite number, or None where it does not apply."
            )
    return torch.tensor([float("nan") if value is None else float(value) for value in rewards], dtype=torch.float32)


def _ignore(column: str, values: list) -> None:
    """TRL's `log_extra` adds a column to its table of completions, which there is none of here."""


def _repeat(values: list, times: int) -> list:
    return [value for value in values for _ in range(times)]


def _as_function(reward, name: str) -> Callable:
    """A callable; an evaluate module's own computation on the batch, without the Arrow files of its `compute`."""
    import evaluate

    if isinstance(reward, evaluate.EvaluationModule):

        def reward_of_module(completions, references, **kwargs):
            return reward._compute(predictions=completions, references=references)["rewards"]

        return reward_of_module
    if not callable(reward):
        raise TypeError(f"The reward `{name}` is a {type(reward).__name__}, not a function of completions.")
    return reward


def _name_of(reward) -> str:
    if isinstance(reward, functools.partial):
        return _name_of(reward.func)
    return getattr(reward, "__name__", None) or getattr(reward, "name", None) or type(reward).__name__


def _unique(names: list[str]) -> list[str]:
    """Two rewards of one name would share their log keys: the second becomes `name_2`."""
    return [
        name if names[:i].count(name) == 0 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]
