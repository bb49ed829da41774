"""What a reward may return. Neutral ground: tasks make these objects, the trainer reads them."""

from collections.abc import Callable
from dataclasses import dataclass

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
