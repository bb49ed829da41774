"""The losses of tuning as their formulas, on whole logits. The trainer's weighted log-probabilities must agree."""

import torch

from vision_rl.rewards import TokenTargets


def selective_log_softmax(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `(..., T)` of `ids (..., T)`, without a second tensor as large as `logits (..., T, V)`."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def reinforce_loss(
    per_token_logps: torch.Tensor, completion_mask: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """Algorithm 2 of the paper before averaging: the sum over samples of -advantage * log p(whole sequence).

    Args:
        per_token_logps: `(R, T)`, completion_mask: `(R, T)`, advantages: `(R,)`, constants for the gradient.
    """
    # masked_fill, not a product: the padding after an end may be a forbidden token, whose log-probability is -inf
    sequence_logps = per_token_logps.masked_fill(completion_mask == 0, 0.0).sum(-1)  # (R,)
    return -(advantages.detach() * sequence_logps).sum()


def token_target_loss(logits: torch.Tensor, targets: TokenTargets) -> torch.Tensor:
    """Cross-entropy of `targets` and the softmax of `logits (R, T, V)`, over the vocabulary or over the candidates.

    It is the mean over the positions of each sequence, summed over the sequences. The targets' weight is not applied.
    """
    rows, tokens = targets.positions.to(logits.device).unbind(1)
    logits_there, ids = logits[rows, tokens].float(), targets.ids.to(logits.device)
    if targets.among == "candidates":
        logps = logits_there.gather(-1, ids).log_softmax(-1)  # (K, C)
    else:
        logps = logits_there.log_softmax(-1).gather(-1, ids)
    probabilities = targets.probabilities.to(logps)
    # a forbidden candidate has log-probability -inf, and 0 * -inf is NaN
    cross_entropy = -(probabilities * logps.masked_fill(probabilities == 0, 0.0)).sum(-1)  # (K,)
    positions_of_row = torch.bincount(rows, minlength=len(logits))
    return (cross_entropy / positions_of_row[rows]).sum()
