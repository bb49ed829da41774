"""What a reward is given: TRL's keywords, one value a completion, in lists of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vision_rl.rewards import as_conversations
from vision_rl.trainer.collator import BatchColumns


LOGGED_NAMES = (
    *("loss", "grad_norm", "learning_rate", "epoch", "step", "step_time", "num_tokens", "num_input_tokens_seen"),
    *("entropy", "kl", "kl_per_completion"),
    *("reward", "reward_std", "reward_std_within_image", "frac_reward_zero_std"),
)
LOGGED_PREFIXES = ("rewards/", "completions/", "timing/", "sampling/", "loss/", "clip_ratio/", "eval_", "train_")
_ATOMS = {str, bytes, int, float, bool, type(None)}


@dataclass(frozen=True)
class RewardArguments:
    """The keyword arguments of one call: lists of `N` values, and what is the same for all of them.

    Args:
        lists: `completions`, `completion_ids`, `prompts`, `references` and every column.
        constants: `trainer_state`, `log_metric`, `log_extra`.
        rows: the data set's row of each completion.
    """

    lists: dict[str, list]
    constants: dict[str, Any]
    rows: list[int]

    def own(self) -> dict[str, Any]:
        """A copy for one reward: what it sorts or empties, no other reward and no metric sees.

        Lists, tuples and dicts are copied at every level, and tensors too. Arrays are views that cannot be written to:
        to copy maps would take as long as to score them. Images and objects of other kinds are shared.
        """
        copies: dict[int, Any] = {}  # siblings share their reference here as well
        return {name: _own(values, copies) for name, values in self.lists.items()} | self.constants

    def part(self, start: int, stop: int) -> "RewardArguments":
        lists = {name: values[start:stop] for name, values in self.lists.items()}
        return RewardArguments(lists, self.constants, self.rows[start:stop])


def reward_arguments(
    completions: list,
    completion_ids: list[list[int]],
    columns: BatchColumns,
    rows: list[int],
    state: Any,
    log_metric: Callable[[str, float], None],
    conversational: bool,
) -> RewardArguments:
    """The arguments for the completions of the images `rows`, `G` adjacent ones an image; columns are repeated `G` times."""
    if len(completions) != len(completion_ids):
        raise ValueError(
            f"{len(completion_ids)} completions were decoded into {len(completions)} objects; there must be one per completion."
        )
    repeats = len(completions) // len(rows)
    lists = {name: _repeat(values, repeats) for name, values in columns.columns.items()}
    if columns.references is not None:
        lists["references"] = _repeat(columns.references, repeats)
    prompts: list = lists.get("prompt", [""] * len(completions))
    if conversational:
        completions, prompts = as_conversations(completions, "assistant"), as_conversations(prompts, "user")
    lists |= {"completions": completions, "completion_ids": completion_ids, "prompts": prompts}
    constants = {"trainer_state": state, "log_metric": log_metric, "log_extra": _ignore}
    return RewardArguments(lists, constants, _repeat(rows, repeats))


def check_logged_name(key: str) -> None:
    """Raise if a reward logs under a name that the trainer uses."""
    if key in LOGGED_NAMES or key.startswith(LOGGED_PREFIXES):
        raise ValueError(f"log_metric({key!r}, ...): the trainer itself logs this name. Choose another one.")


def _own(value: Any, copies: dict[int, Any]) -> Any:
    if type(value) in _ATOMS:
        return value
    if id(value) not in copies:
        copies[id(value)] = _copied(value, copies)
    return copies[id(value)]


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _own(inner, copies) for key, inner in value.items()}
    if type(value) in (list, tuple):
        flat = set(map(type, value)) <= _ATOMS  # ids and texts by the thousand
        return type(value)(value if flat else [_own(inner, copies) for inner in value])
    return value


def _ignore(column: str, values: list) -> None:
    """TRL's `log_extra` adds a column to its table of completions, which there is none of here."""


def _repeat(values: list, times: int) -> list:
    return [value for value in values for _ in range(times)]
