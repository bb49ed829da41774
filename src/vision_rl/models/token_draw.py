"""The policy's distribution over the next token, and a draw from it by inverse CDF."""

from collections.abc import Sequence

import torch
from torch import Tensor


BLOCK = 128  # number of ids of a block of the two-level inverse CDF: 235 blocks of a vocabulary of 30 000
FLAT = 2048  # up to this number of ids, one level takes less time than two
BELOW_ONE = 1 - 2**-23  # a float32 times this factor is less than the float32, whatever the rounding


def policy_logits(
    logits: Tensor, temperature: float = 1.0, suppress_tokens: Sequence[int] | Tensor | None = None
) -> Tensor:
    """Return the logits `(..., V)` of the policy: in float32, divided by the temperature, -inf for suppressed ids."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    if suppress_tokens is not None and len(suppress_tokens):
        logits = logits.index_fill(-1, torch.as_tensor(suppress_tokens, device=logits.device), float("-inf"))
    return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the ids `(R,)` at which the cumulated `weights (R, V)` pass the `uniforms (R,)` times the total weight.

    A large vocabulary is searched in two levels, first for the block of ids and then for the id in the block. So
    V / 128 + 128 numbers a row are cumulated instead of V. The weights need not sum to 1. An id of weight 0 is never
    drawn, and a row with NaN yields an arbitrary id.
    """
    uniforms = uniforms[:, None].to(weights)
    num_ids = weights.shape[-1]
    if num_ids <= FLAT:
        cdf = weights.cumsum(-1)
        return _first_above(weights, cdf, uniforms * cdf[:, -1:]).squeeze(-1)
    whole = num_ids // BLOCK * BLOCK
    blocks = weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)  # (R, V / BLOCK + 1)
    cdf = blocks.cumsum(-1)
    target = uniforms * cdf[:, -1:]
    block = _first_above(blocks, cdf, target)  # (R, 1)
    target = (target - cdf.gather(-1, block) + blocks.gather(-1, block)).clamp(
        min=0.0
    )  # the rest of the target, inside the block
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # (R, BLOCK)
    inside = weights.gather(-1, ids.clamp(max=num_ids - 1)).masked_fill(ids >= num_ids, 0.0)
    return ids.gather(-1, _first_above(inside, inside.cumsum(-1), target)).squeeze(-1)


def _first_above(weights: Tensor, cdf: Tensor, target: Tensor) -> Tensor:
    """Return the first index `(R, 1)` at which `cdf (R, n)`, the cumulated weights, exceeds `target (R, 1)`."""
    target = torch.minimum(target, cdf[:, -1:] * BELOW_ONE)  # u * total may round up to the total, which no id reaches
    found = torch.searchsorted(cdf, target, right=True).clamp(max=cdf.shape[-1] - 1)
    # a parallel cumsum may rise by a rounding error where a weight is 0
    impossible = weights.gather(-1, found) == 0
    return torch.where(impossible, weights.argmax(-1, keepdim=True), found)


def draw(logits: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one id a row `(R,)` from `logits (R, V)`, or take the arg max if `uniforms` is None.

    The second result is the log of the softmax's normaliser, `(R, 1)`.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    log_normalizer = peak + weights.sum(-1, keepdim=True).log()
    return logits.argmax(-1) if uniforms is None else inverse_cdf(weights, uniforms), log_normalizer
