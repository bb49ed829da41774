"""What a reward may return. Neutral ground: tasks make these objects, the trainer reads them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class TokenTargets:
    """Supervised targets for chosen tokens of the sampled completions, learned beside REINFORCE.

    This is how detection learns its confidences: the confidence token of a sampled box is taught the IoU that the
    reward measured (paper section 4.2; `detection_reward.py` of the authors' code). The loss of one sequence is the
    mean, over its listed positions, of the cross-entropy against the full-vocabulary softmax; sequences that learn
    are then averaged, and the result is added with `weight`.

    `weight` is stated for `loss_reduction="mean"`, as the authors state it (0.3). Under `"sum"` the REINFORCE term
    is `max_completion_length` times larger, and so is this one: the balance of the two does not change.

    Args:
        positions: `LongTensor (K, 2)`, pairs (row of the completions, token position in it).
        ids: `LongTensor (K, C)`, the candidate tokens at each position.
        probabilities: `FloatTensor (K, C)`, the target probability of each candidate; rows sum to 1.
        weight: factor of this loss.
    """

    positions: torch.Tensor
    ids: torch.Tensor
    probabilities: torch.Tensor
    weight: float = 1.0

    def __post_init__(self):
        count = len(self.positions)
        if self.positions.ndim != 2 or self.positions.shape[1] != 2:
            raise ValueError(
                f"TokenTargets.positions must be (K, 2): (row, token); it is {tuple(self.positions.shape)}."
            )
        if self.ids.shape != self.probabilities.shape or self.ids.ndim != 2 or len(self.ids) != count:
            raise ValueError(
                f"TokenTargets.ids and .probabilities must both be (K, C) with K = {count} positions; they are "
                f"{tuple(self.ids.shape)} and {tuple(self.probabilities.shape)}."
            )


@dataclass
class RewardOutput:
    """The rewards of a batch of completions together with token targets: a reward returns it instead of a plain list.

    Args:
        rewards: one number a completion, `None` where the reward does not apply.
        token_targets: supervised targets, or `None`.
    """

    rewards: list[float | None]
    token_targets: TokenTargets | None = None


# TRL's contract: reward(completions=, completion_ids=, **columns) -> one float (or None) a completion.
RewardFunc = Callable[..., list[float | None] | RewardOutput]


class SavedReward(ABC):
    """A reward with data of its own, such as document frequencies, which is saved in the model's folder.

    `VisionRewardTrainer` calls `save_pretrained` whenever it saves the model.
    """

    @abstractmethod
    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes what the reward needs into a folder of its own below `reward/`."""


def as_conversations(texts: list, role: str) -> list[list[dict[str, str]]]:
    """Each text as a list of one message, which many of TRL's rewards read: `completion[0]["content"]`."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"completions_format='conversational' is for text; a completion is a {type(text).__name__}."
            )
    return [[{"role": role, "content": text}] for text in texts]


def completion_texts(completions: list) -> list[str]:
    """Texts, from completions of either format: plain, or a list of messages each."""
    return [text[0]["content"] if isinstance(text, list) else text for text in completions]
