"""Calling reward functions the way TRL does, and saying which reward and which row is at fault when one fails."""

import asyncio
import functools
import inspect
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace

import torch

from vision_rl.rewards import RewardFunc, RewardOutput, SavedReward, TokenTargets, as_conversations
from vision_rl.trainer import checks
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.reward_workers import RewardWorkers


LOGGED_NAMES = (
    *("loss", "grad_norm", "learning_rate", "epoch", "step", "step_time", "num_tokens", "num_input_tokens_seen"),
    *("entropy", "kl", "reward", "reward_std", "frac_reward_zero_std"),
)
LOGGED_PREFIXES = ("rewards/", "completions/", "timing/", "sampling/", "eval_", "train_")


@dataclass
class Scores:
    """What the rewards say of `N = B*G` completions; NaN where one does not apply."""

    rewards: torch.Tensor  # (N,) weighted sum
    per_function: torch.Tensor  # (N, F)
    token_targets: list[TokenTargets]
    logged: dict[str, float] = field(default_factory=dict)
    returns: torch.Tensor | None = None  # (N, T+1) what each token can still earn, last what is behind the end of all

    def to(self, device) -> "Scores":
        returns = None if self.returns is None else self.returns.to(device)
        return replace(
            self, rewards=self.rewards.to(device), per_function=self.per_function.to(device), returns=returns
        )

    def returns_of(self, length: int) -> torch.Tensor:
        """The returns of the first `length` tokens `(N, length)`: the rewards, where no reward has prefix rewards."""
        if self.returns is None:
            return self.rewards[:, None].expand(-1, length)
        return self.returns[:, torch.arange(length, device=self.returns.device).clamp(max=self.returns.shape[1] - 1)]


class RewardSum:
    """The weighted sum of one or several rewards.

    Args:
        reward_funcs: callables in TRL's form, or evaluate modules whose result has a list `rewards`.
        weights: one a reward; default all 1.
        conversational: give them completions and prompts as lists of one message.
        num_workers: threads that compute them; 0: the one that asks, at once.
        timeout: most seconds to wait for one of them.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | list[RewardFunc],
        weights: list[float] | None = None,
        conversational: bool = False,
        num_workers: int = 0,
        timeout: float | None = None,
    ):
        self.conversational, self.timeout = conversational, timeout
        self.workers = RewardWorkers(num_workers) if num_workers else None
        functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not functions:
            raise ValueError("reward_funcs is empty: give at least one reward.")
        self.names = _unique([_name_of(function) for function in functions])
        self.functions = [_as_function(function, name) for function, name in zip(functions, self.names, strict=True)]
        self.saved = [reward for reward in map(_saved_reward, functions) if reward is not None]
        kinds = [type(reward) for reward in self.saved]
        if len(set(kinds)) < len(kinds):
            twice = next(kind.__name__ for kind in kinds if kinds.count(kind) > 1)
            raise ValueError(f"Two rewards are a {twice}: saved beside the model, one would overwrite the other.")
        if weights is not None and len(weights) != len(functions):
            raise ValueError(f"reward_weights has {len(weights)} numbers for {len(functions)} reward functions.")
        self.weights = torch.tensor(weights if weights is not None else [1.0] * len(functions), dtype=torch.float32)

    def check(self, dataset_name: str, columns: list[str], has_references: bool) -> None:
        """What the rewards ask for is there; `has_references` is whether the processor makes them."""
        checks.check_reserved_columns(dataset_name, columns, has_references)
        for name, function in zip(self.names, self.functions, strict=True):
            checks.check_reward_signature(name, function, dataset_name, columns, has_references)

    def __call__(
        self, completions: list, completion_ids: list[list[int]], columns: BatchColumns, rows: list[int], state
    ) -> Scores:
        """Score the completions of the images `rows`, `G` adjacent ones each; columns are repeated `G` times."""
        return self.start(completions, completion_ids, columns, rows, state)()

    def start(
        self, completions: list, completion_ids: list[list[int]], columns: BatchColumns, rows: list[int], state
    ) -> Callable[[], Scores]:
        """Start scoring, as `__call__` does; calling what is returned waits for it to end."""
        if len(completions) != len(completion_ids):
            raise ValueError(f"{len(completion_ids)} completions were decoded into {len(completions)} objects.")
        repeats = len(completions) // len(rows)
        logged: dict[str, float] = {}

        def log_metric(key: str, value: float) -> None:
            if key in LOGGED_NAMES or key.startswith(LOGGED_PREFIXES):
                raise ValueError(f"log_metric({key!r}, ...): the trainer itself logs this name; take another one.")
            logged[key] = float(value)

        arguments = {name: _repeat(values, repeats) for name, values in columns.columns.items()}
        if columns.references is not None:
            arguments["references"] = _repeat(columns.references, repeats)
        prompts: list = [""] * len(completions)
        if self.conversational:
            completions, prompts = as_conversations(completions, "assistant"), as_conversations(prompts, "user")
        arguments |= {"completions": completions, "completion_ids": completion_ids, "prompts": prompts}
        constants = {"trainer_state": state, "log_metric": log_metric, "log_extra": _ignore}

        rows = _repeat(rows, repeats)
        calls = [
            _Call(name, function, arguments, constants, rows, self.workers)
            for name, function in zip(self.names, self.functions, strict=True)
        ]
        return functools.partial(self._collect, calls, completions, completion_ids, rows, logged)

    def _collect(self, calls: list["_Call"], completions, completion_ids, rows: list[int], logged: dict) -> Scores:
        token_targets, values, prefixes = [], [], []
        for call in calls:  # all have started: those that are async run while the others compute
            output, prefix = call.result(self.timeout), None
            if isinstance(output, RewardOutput):
                if output.token_targets is not None:
                    _check_token_targets(call.name, output.token_targets, completion_ids)
                    token_targets.append(output.token_targets)
                prefix, output = output.prefix_rewards, output.rewards
            values.append(_as_tensor(call.name, output, completions, rows))
            prefixes.append(None if prefix is None else _prefix_rewards(call.name, prefix, values[-1], completion_ids))
        per_function = torch.stack(values, dim=1)  # (N, F)
        return Scores(
            _weighted_sum(per_function, self.weights),
            per_function,
            token_targets,
            logged,
            _returns(per_function, prefixes, self.weights),
        )


class _Call:
    """One reward on one batch: an async one, or one for the `workers`, has been started, another has been computed."""

    def __init__(
        self,
        name: str,
        function: Callable,
        arguments: dict[str, list],
        constants: dict,
        rows: list[int],
        workers: RewardWorkers | None = None,
    ):
        self.name, self.function, self.arguments, self.constants, self.rows = (
            name,
            function,
            arguments,
            constants,
            rows,
        )
        arguments = {**arguments, **constants}
        try:
            self.output = workers.submit(_start, function, arguments) if workers else _start(function, arguments)
        except Exception as error:
            raise self._explained(error) from error

    def result(self, timeout: float | None = None):
        deadline = None if timeout is None else time.monotonic() + timeout
        output = self.output
        while isinstance(output, Future):  # of a worker, which may have started an async reward
            if not wait([output], None if deadline is None else max(0.0, deadline - time.monotonic())).done:
                output.cancel()
                raise TimeoutError(
                    f"The reward `{self.name}` was not ready after {timeout} s (reward_timeout), on the rows "
                    f"{sorted(set(self.rows))}. Raise reward_timeout, or give the reward a time limit of its own."
                )
            try:
                output = output.result()
            except Exception as error:
                raise self._explained(error, calls_again=timeout is None) from error
        return output

    def _explained(self, error: Exception, calls_again: bool = True) -> RuntimeError:
        """With the completion that fails, found by calling the reward again: not where a call may take for ever."""
        culprit, where = None, f" on the rows {sorted(set(self.rows))}"
        if calls_again and not isinstance(error, OSError):
            culprit, where = self._first_failing(error, 0, len(self.rows)), ""
        if culprit is not None:
            where = f" on row {self.rows[culprit]}, completion {self.arguments['completions'][culprit]!r}"
        return RuntimeError(f"The reward `{self.name}` raised {type(error).__name__}{where}: {error}")

    def _first_failing(self, error: Exception, start: int, stop: int) -> int | None:
        """The first completion that alone fails in the same way, by bisection; `None` where only the batch does."""
        if stop - start == 1:
            return start
        middle = (start + stop) // 2
        for part in (start, middle), (middle, stop):
            arguments = {name: values[slice(*part)] for name, values in self.arguments.items()}
            try:
                output = _start(self.function, {**arguments, **self.constants})
                if isinstance(output, Future):
                    output.result()
            except Exception as again:
                if type(again) is type(error):
                    return self._first_failing(error, *part)
        return None


def _start(function: Callable, arguments: dict):
    """The function's output, or the `Future` of it if the function is async."""
    output = function(**arguments)
    return asyncio.run_coroutine_threadsafe(output, _event_loop()) if inspect.iscoroutine(output) else output


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for the life of the process, in a thread of its own: clients and semaphores belong to their loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vision_rl async rewards", daemon=True).start()
    return loop


def _check_token_targets(name: str, targets: TokenTargets, completion_ids: list[list[int]]) -> None:
    """Every position is a token of a completion, its end token included."""
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    rows, tokens = targets.positions.cpu().unbind(1)
    outside = (rows < 0) | (rows >= len(lengths)) | (tokens < 0)
    outside |= tokens >= lengths[rows.clamp(0, len(lengths) - 1)]
    if outside.any():
        row, token = targets.positions[outside.nonzero()[0, 0]].tolist()
        has = f"that completion has {lengths[row]} tokens" if 0 <= row < len(lengths) else f"there are {len(lengths)}"
        raise ValueError(f"The reward `{name}` gave a token target for completion {row}, token {token}, but {has}.")
    probabilities = targets.probabilities.float()
    sums = probabilities.sum(1)
    distribution = (probabilities > -1e-3).all(1) & (((sums - 1).abs() < 1e-3) | (sums == 0))
    if not distribution.all():
        raise ValueError(
            f"The reward `{name}` gave token targets with the probabilities {probabilities[~distribution][0].tolist()}: "
            "they must sum to 1, or all be 0 where nothing is to be learned."
        )
    ids = targets.ids.sort(1).values
    if (ids[:, 0] < 0).any() or (targets.among == "candidates" and (ids[:, 1:] == ids[:, :-1]).any()):
        raise ValueError(f"The reward `{name}` gave token targets with an id below 0, or twice at one position.")


def _prefix_rewards(name: str, prefix, rewards: torch.Tensor, completion_ids: list[list[int]]) -> torch.Tensor:
    """`(N, T+1)` of `rewards (N,)`: behind the end of a completion, what is earned is all of its reward."""
    prefix = torch.as_tensor(prefix, dtype=torch.float32).cpu()
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    longest = int(lengths.max())
    if prefix.ndim != 2 or len(prefix) != len(lengths) or prefix.shape[1] < longest:
        raise ValueError(
            f"The reward `{name}` gave prefix_rewards of the shape {tuple(prefix.shape)}; it must be ({len(lengths)}, T): "
            f"one row a completion, one number a token, and the longest completion has {longest}."
        )
    prefix = torch.nn.functional.pad(prefix[:, :longest], (0, 1))
    behind = torch.arange(longest + 1) >= lengths[:, None]
    prefix = torch.where(behind | rewards.isnan()[:, None], rewards[:, None], prefix)
    broken = ~prefix.isfinite() & ~rewards.isnan()[:, None]
    if broken.any():
        row, token = broken.nonzero()[0].tolist()
        raise ValueError(
            f"The reward `{name}` gave a prefix reward of {prefix[row, token]} for completion {row}, token {token}; it "
            "must be finite."
        )
    return prefix


def _returns(
    per_function: torch.Tensor, prefixes: list[torch.Tensor | None], weights: torch.Tensor
) -> torch.Tensor | None:
    """What each token can still earn `(N, T+1)`: of each reward what was not earned before, all of one without prefixes."""
    width = next((prefix.shape[1] for prefix in prefixes if prefix is not None), None)
    if width is None:
        return None
    columns = [
        values[:, None].expand(-1, width) if prefix is None else values[:, None] - prefix
        for values, prefix in zip(per_function.unbind(1), prefixes, strict=True)
    ]
    return _weighted_sum(torch.stack(columns, dim=-1), weights)


def _weighted_sum(per_function: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Over the functions, `(..., F)`; NaN, one that does not apply, is left out, and is the sum where none does."""
    return (per_function * weights).nansum(-1).masked_fill(per_function.isnan().all(-1), float("nan"))


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

        def reward_of_module(completions, references=None, **kwargs):
            result = reward._compute(predictions=completions, references=references)
            if "rewards" not in result:
                raise TypeError(
                    f"The evaluate module `{name}` gives {', '.join(sorted(result))}; a reward needs `rewards`, one a completion."
                )
            return result["rewards"]

        return reward_of_module
    if not callable(reward):
        raise TypeError(f"The reward `{name}` is a {type(reward).__name__}, not a function of completions.")
    return reward


def _saved_reward(reward) -> SavedReward | None:
    """The reward that is saved: itself, or the one inside a partial function or an evaluate module's `reward`."""
    import evaluate

    if isinstance(reward, functools.partial):
        return _saved_reward(reward.func)
    if isinstance(reward, evaluate.EvaluationModule):
        reward = getattr(reward, "reward", None)
    return reward if isinstance(reward, SavedReward) else None


def _name_of(reward) -> str:
    if isinstance(reward, functools.partial):
        return _name_of(reward.func)
    return getattr(reward, "__name__", None) or getattr(reward, "name", None) or type(reward).__name__


def _unique(names: list[str]) -> list[str]:
    """Two rewards of one name would share their log keys: the second becomes `name_2`."""
    unique: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique
