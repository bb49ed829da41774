"""The policy's distribution over the next token, and a draw from it by inverse CDF."""

from collections.abc import Sequence

import torch
from torch import Tensor


BLOCK = 128  # ids a block of the inverse CDF in two levels: 235 blocks of a vocabulary of 30 000
FLAT = 2048  # up to so many ids one level takes less time than two
BELOW_ONE = 1 - 2**-23  # times a float32 is less than it, whatever the rounding


def policy_logits(
    logits: Tensor, temperature: float = 1.0, suppress_tokens: Sequence[int] | Tensor | None = None
) -> Tensor:
    """Logits `(..., V)` of the distribution that is sampled and learned: float32, tempered, forbidden ids at -inf."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    if suppress_tokens is not None and len(suppress_tokens):
        logits = logits.index_fill(-1, torch.as_tensor(suppress_tokens, device=logits.device), float("-inf"))
    return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The id `(R,)` whose share of the cumulated `weights (R, V)` the uniform `(R,)` falls into.

    A large vocabulary in two levels, first the block of ids and then the id in it: V / 128 + 128 numbers a row are
    cumulated instead of V. The weights need not sum to 1. An id of weight 0 is never drawn, and rows with NaN give some
    id.
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
    )  # what is left inside the block
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # (R, BLOCK)
    inside = weights.gather(-1, ids.clamp(max=num_ids - 1)).masked_fill(ids >= num_ids, 0.0)
    return ids.gather(-1, _first_above(inside, inside.cumsum(-1), target)).squeeze(-1)


def _first_above(weights: Tensor, cdf: Tensor, target: Tensor) -> Tensor:
    """The first index `(R, 1)` at which `cdf (R, n)`, the cumulated weights, exceeds `target (R, 1)`."""
    target = torch.minimum(target, cdf[:, -1:] * BELOW_ONE)  # u * total may round up to the total, which no id reaches
    found = torch.searchsorted(cdf, target, right=True).clamp(max=cdf.shape[-1] - 1)
    # a parallel cumsum may rise by a rounding error where a weight is 0
    impossible = weights.gather(-1, found) == 0
    return torch.where(impossible, weights.argmax(-1, keepdim=True), found)


def draw(logits: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """One id a row `(R,)` of `logits (R, V)` and the log of their normaliser `(R, 1)`; without uniforms the arg max."""
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    log_normalizer = peak + weights.sum(-1, keepdim=True).log()
    return logits.argmax(-1) if uniforms is None else inverse_cdf(weights, uniforms), log_normalizer
