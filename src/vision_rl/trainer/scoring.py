"""Calling reward functions the way TRL does, and adding up what they say."""

import functools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from vision_rl.processing import VisionProcessor
from vision_rl.rewards import RewardFunc, TokenTargets
from vision_rl.trainer import checks
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.modules import for_processor
from vision_rl.trainer.reward_arguments import RewardArguments, check_logged_name, reward_arguments
from vision_rl.trainer.reward_calls import RewardCall
from vision_rl.trainer.reward_functions import as_function, names_of, saved_rewards, source_of
from vision_rl.trainer.reward_outputs import NAN, CheckedOutput, checked_output, shown
from vision_rl.trainer.reward_scaling import counted, weighted_sum
from vision_rl.trainer.reward_workers import RewardWorkers


logger = logging.getLogger(__name__)

MOST_SKIPPED = 100  # calls in a row of one reward: whatever is wrong with it is there to stay


@dataclass
class Scores:
    """What the rewards say of `N = B*G` completions; NaN where one does not apply."""

    rewards: torch.Tensor  # (N,) weighted sum
    per_function: torch.Tensor  # (N, F)
    token_targets: list[TokenTargets]
    logged: dict[str, float] = field(default_factory=dict)  # of this call: means of what `log_metric` was given
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
        reward_funcs: callables in TRL's form, modules, text classifiers of transformers (or the name of one), or evaluate
            modules whose result has a list `rewards`.
        weights: one a reward; default all 1.
        conversational: give them completions and prompts as lists of one message.
        num_workers: threads that compute them; 0: the one that asks, at once.
        timeout: most seconds to wait for one of them.
        on_error: `"raise"`, or `"skip"`: a completion whose reward is not to be had is not scored at all, neither by this
            reward nor by the others, whose sum would be another one than its siblings'. It is counted and logged. A
            reward of weight 0 that fails is counted and logged as well, and changes nothing else.
        find_failing_row: where one raises, call it again on parts of the batch, to name the completion.
        processing_classes: the tokenizers of text classifiers, one a reward, `None` for the others.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | list[RewardFunc],
        weights: list[float] | None = None,
        conversational: bool = False,
        num_workers: int = 0,
        timeout: float | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        find_failing_row: bool = False,
        processing_classes: Sequence | PreTrainedTokenizerBase | None = None,
    ):
        self.conversational, self.timeout = conversational, timeout
        self.on_error, self.find_failing_row = on_error, find_failing_row
        self.workers = RewardWorkers(num_workers) if num_workers else None
        rewards = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not rewards:
            raise ValueError("reward_funcs is empty: give at least one reward.")
        if processing_classes is None:
            processing_classes = [None] * len(rewards)
        tokenizers = processing_classes if isinstance(processing_classes, list | tuple) else [processing_classes]
        if len(tokenizers) != len(rewards):
            raise ValueError(
                f"reward_processing_classes has {len(tokenizers)} entries for {len(rewards)} reward functions: give "
                "one for each, None for those that need none."
            )
        self.names = names_of(rewards)
        self.functions = [as_function(*each) for each in zip(rewards, self.names, tokenizers, strict=True)]
        self.saved = saved_rewards(self.functions)
        check_weights(weights, len(rewards))
        self.weights = torch.tensor(weights if weights is not None else [1.0] * len(rewards), dtype=torch.float32)
        self.device: torch.device | None = None
        self._skipped = dict.fromkeys(self.names, 0)  # calls of each, in a row

    def fit_to(self, processor: VisionProcessor) -> None:
        """Rewards that repeat facts of the processor take them from it, or are compared with it."""
        self.functions = [for_processor(function, processor) for function in self.functions]
        self.saved = saved_rewards(self.functions)

    def check(self, dataset_name: str, columns: list[str], has_references: bool) -> None:
        """Check that the data has what the rewards ask for; `has_references` says whether the processor makes references."""
        checks.check_reserved_columns(dataset_name, columns, has_references)
        for name, function in zip(self.names, self.functions, strict=True):
            called = function.forward if isinstance(function, nn.Module) else function
            checks.check_reward_signature(name, called, dataset_name, columns, has_references)

    def prepare(self, accelerator) -> None:
        """Rewards that are modules go where the model is; threads will have its device as their current one."""
        self.device = accelerator.device
        for function in self.functions:
            if isinstance(function, nn.Module):
                accelerator.prepare_model(function, evaluation_mode=True)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the rewards' names to `reward/rewards.json`, and the files of rewards that have data of their own."""
        folder = Path(save_directory) / "reward"
        folder.mkdir(parents=True, exist_ok=True)
        named = zip(self.names, self.functions, self.weights.tolist(), strict=True)
        described = [
            {"name": name, "weight": weight, "source": source_of(function)} for name, function, weight in named
        ]
        (folder / "rewards.json").write_text(json.dumps(described, indent=2) + "\n")
        for reward in self.saved:
            reward.save_pretrained(str(save_directory))

    def __call__(
        self, completions: list, completion_ids: list[list[int]], columns: BatchColumns, rows: list[int], state
    ) -> Scores:
        """Score the completions of the images `rows`, `G` adjacent ones each; columns are repeated `G` times."""
        return self.start(completions, completion_ids, columns, rows, state)()

    def start(
        self, completions: list, completion_ids: list[list[int]], columns: BatchColumns, rows: list[int], state
    ) -> Callable[[], Scores]:
        """Start scoring, as `__call__` does; calling what is returned waits for it to end."""
        logged: dict[str, list[float]] = defaultdict(list)

        def log_metric(key: str, value: float) -> None:
            check_logged_name(key)
            logged[key].append(float(value))

        arguments = reward_arguments(
            completions, completion_ids, columns, rows, state, log_metric, self.conversational
        )
        calls: list[RewardCall] = []
        for name, function in zip(self.names, self.functions, strict=True):
            calls.append(RewardCall(name, function, arguments, self.workers, self.device, self.find_failing_row))
            if self.on_error == "raise" and self.workers is None and calls[-1].has_failed:
                break  # those behind it may cost something, and are in vain
        return functools.partial(self._collect, calls, arguments, logged)

    def _collect(self, calls: list[RewardCall], arguments: RewardArguments, logged: dict[str, list[float]]) -> Scores:
        try:  # all have begun: those that are async run while the others compute
            outputs = [self._output(call, arguments) for call in calls]
        except BaseException:
            for call in calls:
                call.leave()
            raise
        per_function = torch.stack([output.rewards for output in outputs], dim=1)  # (N, F)
        unknown = torch.zeros(len(per_function), dtype=torch.bool)
        for name, counts, output in zip(self.names, counted(self.weights).tolist(), outputs, strict=True):
            if counts:
                unknown[list(output.problems)] = True
            if self.on_error == "skip":
                logged[f"rewards/{name}/skipped"] = [len(output.problems) / len(unknown)]
        rewards = weighted_sum(per_function, self.weights).masked_fill(unknown, NAN)
        if rewards.isinf().any():
            raise ValueError(f"The sum of the rewards {self.names} is too large for float32: lower reward_weights.")
        returns = _returns(per_function, [output.prefix_rewards for output in outputs], self.weights)
        return Scores(
            rewards,
            per_function,
            [_without(unknown, output.problems, output.token_targets) for output in outputs if output.token_targets],
            {key: fmean(values) for key, values in logged.items()},
            None if returns is None else returns.masked_fill(unknown[:, None], NAN),
        )

    def _output(self, call: RewardCall, arguments: RewardArguments) -> CheckedOutput:
        """The output of one reward; with `on_error="skip"` it is NaN for the completions on which the reward failed."""
        completions, ids = arguments.lists["completions"], arguments.lists["completion_ids"]
        try:
            output = checked_output(call.name, call.result(self.timeout), ids)
            if output.problems and self.on_error == "raise":
                raise ValueError(_problem(call.name, output, arguments))
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._count_skipped(call.name, error)
            return CheckedOutput(
                torch.full((len(completions),), NAN), dict.fromkeys(range(len(completions)), str(error))
            )
        self._skipped[call.name] = 0
        if output.problems:
            logger.warning(
                "%s %d of %d are skipped.", _problem(call.name, output, arguments), len(output.problems), len(ids)
            )
        return output

    def _count_skipped(self, name: str, error: Exception) -> None:
        """Count a call that failed as a whole, and raise after too many such calls in a row."""
        self._skipped[name] += 1
        if self._skipped[name] >= MOST_SKIPPED:
            raise RuntimeError(f"The reward `{name}` has failed {MOST_SKIPPED} times in a row: {error}") from error
        logger.warning("%s (skipped; on_reward_error='skip', %d in a row)", error, self._skipped[name])


def _problem(name: str, output: CheckedOutput, arguments: RewardArguments) -> str:
    number, problem = next(iter(output.problems.items()))
    return (
        f"The reward `{name}` returned {problem} for row {arguments.rows[number]}, completion "
        f"{shown(arguments.lists['completions'][number])}; it must return a finite number, or None where it does not apply."
    )


def _returns(
    per_function: torch.Tensor, prefixes: list[torch.Tensor | None], weights: torch.Tensor
) -> torch.Tensor | None:
    """The returns `(N, T+1)`: what each token can still earn. A reward without prefix rewards counts whole for every token."""
    width = next((prefix.shape[1] for prefix in prefixes if prefix is not None), None)
    if width is None:
        return None
    columns = [
        values[:, None].expand(-1, width) if prefix is None else values[:, None] - prefix
        for values, prefix in zip(per_function.unbind(1), prefixes, strict=True)
    ]
    return weighted_sum(torch.stack(columns, dim=-1), weights)


def _without(unknown: torch.Tensor, problems: Iterable[int], targets: TokenTargets) -> TokenTargets:
    """Return the targets of the completions that are not `unknown (N,)`, nor `problems` of the reward that gave them."""
    unknown = unknown.index_fill(0, torch.tensor([*problems], dtype=torch.int64), True)
    return targets.select(~unknown.to(targets.positions.device)[targets.positions[:, 0]])


def check_weights(weights: Sequence[float] | None, num_rewards: int) -> None:
    """There is a weight for each reward, if there are any."""
    if weights is not None and len(weights) != num_rewards:
        raise ValueError(
            f"reward_weights has {len(weights)} numbers for {num_rewards} reward functions: give one for each."
        )
