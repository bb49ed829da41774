"""The losses of both steps as pure functions on tensors; those of tuning as weights of the tokens' log-probabilities."""

import torch
import torch.nn.functional as F

from vision_rl.models.log_prob_head import WeightedTokens
from vision_rl.rewards import TokenTargets


def reinforce_weights(
    completion_ids: torch.Tensor, completion_mask: torch.Tensor, advantages: torch.Tensor
) -> WeightedTokens:
    """Algorithm 2 of the paper: -advantage is the weight of the log-probability of each of a sample's tokens.

    `completion_ids (R, T)`, `completion_mask (R, T)`, and `advantages (R,)`, or `(R, T)` where each token has its own:
    constants of the gradient.
    """
    rows, positions = completion_mask.nonzero(as_tuple=True)
    of_tokens = advantages[rows] if advantages.ndim == 1 else advantages[rows, positions]
    return WeightedTokens(rows, positions, completion_ids[rows, positions], -of_tokens.detach().float())


def token_target_weights(targets: TokenTargets, weight: float = 1.0) -> WeightedTokens:
    """Cross-entropy with `targets`, times `weight`: each candidate is weighted by minus its target probability.

    The mean over the positions of each sequence, summed over sequences.
    """
    rows, positions = targets.positions.unbind(1)
    share = weight / torch.bincount(rows)[rows]  # (K,) of one position of its sequence
    taught = targets.probabilities.any(1)  # a position without a target only counts in that mean
    candidates, groups = targets.ids.shape[1], None
    if targets.among == "candidates":
        groups = torch.arange(1, len(rows) + 1, device=rows.device).repeat_interleave(candidates)
    tokens = WeightedTokens(
        rows.repeat_interleave(candidates),
        positions.repeat_interleave(candidates),
        targets.ids.flatten(),
        -(targets.probabilities.float() * share[:, None]).flatten(),
        groups,
    )
    return tokens[taught.repeat_interleave(candidates)]


def mle_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    label_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of `logits (B, T, V)` with `labels (B, T)`, 0 at -100, times `label_weights (B, T)`: `(B, T)`."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view_as(labels)
    return losses if label_weights is None else losses * label_weights
