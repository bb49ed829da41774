"""Writing completions token by token: the draw, how a step is run, and the loop that drops what has ended.

On a GPU a step is captured as a CUDA graph once and replayed, which takes Python out of the loop; elsewhere the same
step simply runs. THE CAPTURE ITSELF HAS NOT BEEN RUN YET, for want of a GPU: everything around it is tested on a CPU.
"""

import logging
from collections.abc import Callable, Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vision_rl.models.decode_step import OwnForwardStep, VisionStep


logger = logging.getLogger(__name__)

BLOCK = 128  # ids a block of the inverse CDF in two levels: 235 blocks of a vocabulary of 30 000
FLAT = 2048  # up to so many ids one level takes less time than two
BELOW_ONE = 1 - 2**-23  # times a float32 is less than it, whatever the rounding


# --- the draw -------------------------------------------------------------------------------------------------------


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


# --- how a step is run ----------------------------------------------------------------------------------------------


class Eager:
    """Every step runs as it is called. Attention is given the tokens so far and needs no mask."""

    bucket = 1  # attention is given a multiple of so many tokens
    shrink = 0.85  # rows are dropped where at most this share of them is left

    def __init__(self, check_every: int = 1):
        self.check_every = check_every  # steps between two looks at what has ended: on a GPU each look waits for it

    def __call__(self, shape: Hashable, step: Callable[[], None]) -> None:
        step()

    def forget(self) -> None:
        """The buffers have moved."""


class CudaGraphs(Eager):
    """A step of a new shape runs as it is called, the next of that shape is captured, and all later ones replay it.

    Graphs live as long as one call of `sample`: weights may move between two calls, and the images' keys and values
    must not stay in memory while the model learns. Each capture takes some steps' worth of time, so shapes are few:
    lengths in steps of 64, and rows are dropped only where half of them are left.
    """

    bucket = 64
    shrink = 0.5

    def __init__(self):
        super().__init__(check_every=8)
        self.capturing = True
        self.forget()

    def __call__(self, shape: Hashable, step: Callable[[], None]) -> None:
        if shape not in self.graphs or not self.capturing:
            self.graphs[shape] = None
            return step()  # allocates what is made on first use: cuBLAS workspaces, autocast's copies of the weights
        graph = self.graphs[shape]
        if graph is None:
            graph = self.graphs[shape] = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                    step()
            except RuntimeError as error:  # nothing of the step has been computed
                logger.warning("A decode step could not be captured as a CUDA graph, which is slower: %s", error)
                self.capturing = False
                return step()
        graph.replay()

    def forget(self) -> None:
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle()


def way_of_running(step: OwnForwardStep | VisionStep, device: torch.device) -> Eager:
    """CUDA graphs where the device and the step allow them."""
    if device.type != "cuda":
        return Eager()
    return CudaGraphs() if step.capturable else Eager(check_every=8)


# --- the loop -------------------------------------------------------------------------------------------------------


class Decoding:
    """The completions of some images while they are written, one token of all rows at a time.

    The rows still at work are a rectangle: the same number for each image still at work. `origin` says which
    completions they are. A row that has ended goes on with padding until it is dropped.

    Args:
        step: gives the logits of the next token; its clock counts.
        num_images: B, or B*G for a decoder that wants images repeated.
        num_rows: B*G.
        start, pad: the ids before and behind a completion.
        ends: (E,) the ids that end one.
        suppressed: ids that are never drawn.
        temperature: divides the logits.
        uniforms: (B*G, >= length) or None, for the most likely token each time.
        watched: (C,) ids whose log-probabilities are kept at every position.
    """

    def __init__(
        self,
        step: OwnForwardStep | VisionStep,
        num_images: int,
        num_rows: int,
        *,
        start: int,
        pad: int,
        ends: Tensor,
        suppressed: Tensor,
        temperature: float,
        uniforms: Tensor | None,
        watched: Tensor,
    ):
        self.next_logits, self.clock, self.num_images = step, step.clock, num_images
        self.pad, self.ends, self.suppressed, self.watched = pad, ends, suppressed, watched
        self.temperature, self.uniforms = temperature, uniforms
        device, length = self.clock.position.device, self.clock.length
        self.origin = torch.arange(num_rows, device=device)
        self.tokens = torch.full((num_rows, 1), start, device=device)
        self.done = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.ids = torch.full((num_rows, length), pad, device=device)
        self.logps = torch.zeros(num_rows, length, device=device, dtype=torch.float32)
        self.watched_logps = torch.zeros(num_rows, length, len(watched), device=device, dtype=torch.float32)

    def write(self, run: Eager, synced: bool = False) -> None:
        """All tokens of all completions; `synced` goes on until every rank has ended, with all rows."""
        for t in range(self.clock.length):
            self.clock.set(t, run.bucket)
            run((self.num_images, len(self.done), self.clock.seen), self.step)
            if len(self.ends) and (t + 1) % run.check_every == 0:
                num_open = self._num_open(synced)
                if num_open == 0:
                    break
                if not synced and num_open <= run.shrink * len(self.done) and self.drop_ended(run.shrink):
                    run.forget()

    def step(self) -> None:
        """The next token of every row, drawn and recorded; no value of it is read by the host."""
        position = self.clock.position
        logits = policy_logits(self.next_logits(self.tokens), self.temperature, self.suppressed)  # (R, V)
        uniforms = None if self.uniforms is None else self.uniforms.index_select(1, position).squeeze(1)
        drawn, log_normalizer = draw(logits, uniforms)
        drawn = drawn.masked_fill(self.done, self.pad)
        logps = (logits.gather(-1, drawn[:, None]) - log_normalizer).squeeze(1)
        self.ids[self.origin, position] = drawn
        self.logps[self.origin, position] = logps.masked_fill(self.done, 0.0)
        if len(self.watched):
            logps = logits[:, self.watched] - log_normalizer  # (R, C)
            self.watched_logps[self.origin, position] = logps.masked_fill(self.done[:, None], 0.0)
        self.tokens.copy_(drawn[:, None])
        self.done |= (drawn[:, None] == self.ends).any(-1)
        position += 1

    def drop_ended(self, share: float) -> bool:
        """Go on with the rows that have not ended, if at most `share` of the rows are left; whether it was so.

        An image keeps as many rows as the one with the most open rows, so that they stay a rectangle; images without
        an open row are dropped with their keys and values.
        """
        is_open = ~self.done.view(self.num_images, -1)  # (images, rows of each)
        num_open = is_open.sum(1)
        images = num_open.nonzero().squeeze(1)
        rows_each = int(num_open.max())
        if len(images) * rows_each > share * len(self.done):
            return False
        order = (
            is_open[images].int().argsort(dim=1, descending=True, stable=True)[:, :rows_each]
        )  # the open ones first
        rows = (images[:, None] * is_open.shape[1] + order).flatten()
        self.next_logits.keep(images if len(images) < self.num_images else None, rows)
        self.num_images = len(images)
        self.origin, self.tokens, self.done = self.origin[rows], self.tokens[rows], self.done[rows]
        if self.uniforms is not None:
            self.uniforms = self.uniforms[rows]
        return True

    def _num_open(self, synced: bool) -> int:
        num_open = (~self.done).sum()
        if synced and dist.is_initialized():
            dist.all_reduce(num_open)
        return int(num_open)
