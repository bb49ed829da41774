"""A sample's reward minus its baseline. Pure functions of the rewards `(B, G)`, where NaN means: not scored.

They take returns `(B, G, T)` as well, what each token can still earn: the reward minus what was earned before that token.
The baseline of a token is then the siblings' mean of the same, so of what was still to earn at its place.

The baseline may depend on everything but the sample itself and leaves the gradient unbiased (paper, section 3);
`mean` breaks that rule, and its docstring says by how much. A sample without a reward, or without the siblings that
its baseline needs, has advantage 0.
"""

import torch


def relative_to_largest(values: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Values minus the largest of them along `dim`: equal ones become exactly 0, and no difference changes. NaN stays NaN.

    In float32 the sum and the mean of equal numbers are rounded, unless the numbers are 0.
    """
    largest = values.masked_fill(~values.isfinite(), float("-inf")).amax(dim, keepdim=True)
    return values - largest.masked_fill(largest.isinf(), 0.0)


def leave_one_out_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of the other samples of the image: every sample learns (Kool et al. 2019)."""
    scored, rewards = ~rewards.isnan(), relative_to_largest(rewards)
    others = rewards.nansum(1, keepdim=True) - rewards.nan_to_num()  # (B, G)
    num_others = scored.sum(1, keepdim=True) - scored.int()
    return torch.where(scored & (num_others > 0), rewards - others / num_others.clamp(min=1), 0.0)


def first_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """The released estimator (`detection_reward.py`): sample 0 learns, and the other samples are its baseline."""
    advantages = leave_one_out_advantages(rewards)
    return torch.cat([advantages[:, :1], torch.zeros_like(advantages[:, 1:])], dim=1)


def greedy_advantages(rewards: torch.Tensor, greedy_rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the reward of the greedy completion, `(B,)` or `(B, T)`: self-critical training (Rennie et al. 2017)."""
    return (rewards - greedy_rewards[:, None]).nan_to_num(nan=0.0)


def mean_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of all samples of the image, the sample itself included.

    Biased by a factor only: its expected gradient is (G - 1) / G of the exact one, because a sample's own reward is
    in its baseline.
    """
    rewards = relative_to_largest(rewards)
    return (rewards - rewards.nanmean(1, keepdim=True)).nan_to_num(nan=0.0)


def no_baseline_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """The reward itself: plain REINFORCE (Williams 1992), unbiased and of the highest variance."""
    return rewards.nan_to_num(nan=0.0)
