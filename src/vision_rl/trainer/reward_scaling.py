"""Rewards of several functions as one, and their scale. Pure functions; the names are TRL's."""

from collections.abc import Callable
from dataclasses import replace

import torch

from vision_rl.trainer.advantages import relative_to_largest
from vision_rl.trainer.reward_config import VisionRewardConfig
from vision_rl.trainer.reward_outputs import NAN
from vision_rl.trainer.rollout import Rollout


MARGIN = 1e-4  # TRL's: added to a standard deviation before it divides


def nan_std(values: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """The standard deviation of the values that are not NaN, with Bessel's correction, as TRL has it; 0 for fewer than two.

    Of all `values`, or along `dim`, which is kept.
    """
    flat = values.flatten()[None] if dim is None else values.movedim(dim, -1)
    flat, count = relative_to_largest(flat, dim=-1), (~flat.isnan()).sum(-1, keepdim=True)
    squared = (flat - flat.nanmean(-1, keepdim=True)).square().nansum(-1, keepdim=True)
    std = (squared / (count - 1).clamp(min=1)).sqrt()
    return std.squeeze() if dim is None else std.movedim(-1, dim)


def counted(weights: torch.Tensor) -> torch.Tensor:
    """Whether each of F rewards counts in the sum, `(F,)`: one of weight 0 is only watched, unless all are of weight 0."""
    return (weights != 0) | (weights == 0).all()


def weighted_sum(per_function: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum over F reward functions, `(..., F)`.

    NaN means that a reward does not apply; where none of those that count does, the sum is NaN.
    """
    weights = weights.to(per_function)
    return (per_function * weights).nansum(-1).masked_fill((per_function.isnan() | ~counted(weights)).all(-1), NAN)


def normalized_sum(per_function: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Rewards `(B, G, F)` as one `(B, G)`: each minus its mean, over its standard deviation, among an image's samples first.

    So a reward of large numbers does not drown the others (GDPO; TRL's `"normalize_then_sum"`), and one that is the same
    for all samples of an image adds exactly 0.
    """
    relative = relative_to_largest(per_function)
    centred = relative - relative.nanmean(1, keepdim=True)
    return weighted_sum(centred / (nan_std(per_function, dim=1) + MARGIN), weights)


def scaled_over_rollout(
    rollout: Rollout, args: VisionRewardConfig, gather: Callable[[torch.Tensor], torch.Tensor]
) -> Rollout:
    """The rollout with its advantages over a standard deviation among all of its samples, where the options say so.

    That of the rewards with `scale_rewards="batch"`, as in `group_scaled`; that of the advantages, so of the sums, with
    `"normalize_then_sum"`. `gather` puts the `(B, G)` of all processes together.
    """
    advantages = rollout.advantages
    if args.multi_objective_aggregation == "normalize_then_sum":
        scored = advantages.masked_fill(rollout.rewards.isnan(), NAN)
        if args.baseline == "first":  # about 0, as there may be only one image, and so one sample that learns
            std = gather(scored[:, :1]).square().nanmean().sqrt().nan_to_num(nan=0.0)
        else:
            std = nan_std(gather(scored))
    elif args.scale_rewards == "batch":
        std = nan_std(gather(rollout.rewards))
        if advantages.ndim == 3:  # of each token
            std = torch.maximum(std, gather(advantages.square().mean(-1)).mean().sqrt())
    else:
        return rollout
    return replace(rollout, advantages=advantages / (std + MARGIN))


def group_scaled(advantages: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Advantages over the standard deviation among the image's rewards, both `(B, G)` or both `(B, G, T)`.

    Samples that earn as much in all may earn it at other tokens, which have advantages then: these are not divided by less
    than their own root mean square.
    """
    if rewards.ndim == 2:
        return advantages / (nan_std(rewards, dim=1) + MARGIN)
    of_totals, of_tokens = nan_std(rewards[..., 0], dim=1), advantages.square().mean((1, 2))[:, None].sqrt()
    return advantages / (torch.maximum(of_totals, of_tokens) + MARGIN)[..., None]
