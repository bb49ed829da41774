"""Write completions token by token, all rows at once; rows that have ended are dropped from the work."""

from collections.abc import Callable, Hashable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LogitsProcessorList

from vision_rl.models.decode_step import DecodeStep
from vision_rl.models.row_buffer import RowBuffer
from vision_rl.models.token_draw import draw, policy_logits


class EagerRunner:
    """Runs every step by calling it. Attention is given exactly the tokens so far, and needs no mask.

    Args:
        check_every: number of steps between two checks of which rows have ended; each check waits for the GPU.
    """

    bucket = 1  # attention is given a multiple of `bucket` tokens
    shrink = 0.85  # ended rows are dropped once at most this share of the rows is left

    def __init__(self, check_every: int = 1):
        self.check_every = check_every

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        step()

    def size(self, needed: int, current: int) -> int:
        """Return how many of `current` images, or rows of an image, to keep, where at least `needed` must be kept."""
        return needed


class Decoding:
    """The completions of some images while they are being written, one token of every row at a time.

    All images that are still at work have the same number of rows at work. `origin` holds the index of the completion
    that each of these rows writes. A row that has ended is filled with padding until it is dropped. Every tensor stays
    at its place in memory, in the next rollout too.

    Args:
        step: gives the logits of the next token; its `position` is the position of the token that is written.
        num_images: B, or B*G for a decoder that needs each image repeated.
        num_rows: B*G.
        start, pad: the ids before and behind a completion.
        ends: (E,) the ids that end a completion.
        suppressed: ids that are never drawn.
        temperature: divides the logits.
        do_sample: if False, the most likely token is taken at each step.
        watched: (C,) ids whose log-probabilities are kept at every position.
        logits_processor: changes the logits from which greedy decoding chooses; the recorded log-probabilities stay
            those of the unchanged logits. It is called with the ids so far, whose number differs from step to step.
    """

    def __init__(
        self,
        step: DecodeStep,
        num_images: int,
        num_rows: int,
        *,
        start: int,
        pad: int,
        ends: Tensor,
        suppressed: Tensor,
        temperature: float,
        do_sample: bool,
        watched: Tensor,
        logits_processor: LogitsProcessorList | None = None,
    ):
        self.next_logits, self.position = step, step.position
        self.all_images, self.start_id, self.pad = num_images, start, pad
        self.ends, self.suppressed, self.watched = ends, suppressed, watched
        self.temperature, self.logits_processor = temperature, logits_processor
        device, length = self.position.index.device, self.position.length
        self.rows = torch.arange(num_rows, device=device)
        self.ids = torch.empty(num_rows, length, dtype=torch.long, device=device)
        self.logps = torch.empty(num_rows, length, device=device, dtype=torch.float32)
        self.watched_logps = torch.empty(num_rows, length, len(watched), device=device, dtype=torch.float32)
        self.origin = RowBuffer(torch.empty_like(self.rows))
        self.tokens = RowBuffer(torch.empty(num_rows, 1, dtype=torch.long, device=device))
        self.done = RowBuffer(torch.empty(num_rows, dtype=torch.bool, device=device))
        self.uniforms: RowBuffer | None = None
        if do_sample:
            self.uniforms = RowBuffer(torch.empty(num_rows, length, device=device, dtype=torch.float32))

    def start(self, images: Tensor, uniforms: Tensor | None, mask: Tensor | None = None) -> None:
        """Begin a rollout about `images`. Sampling needs `uniforms (B*G, >= length)`; `mask (B, N)` hides padding."""
        self.num_images = self.all_images
        self.position.restart()
        self.next_logits.start(images, mask)
        self.origin.restart(self.rows)
        self.tokens.restart(self.start_id)
        self.done.restart()
        if self.uniforms is not None and uniforms is not None:
            self.uniforms.restart(uniforms[:, : self.position.length])
        self.ids.fill_(self.pad)
        self.logps.zero_()
        self.watched_logps.zero_()

    def write(self, runner: EagerRunner, synced: bool = False) -> None:
        """Write all tokens of all completions; with `synced`, keep all rows until every rank has ended."""
        for t in range(self.position.length):
            self.position.set(t, runner.bucket)
            if t == 0:
                self.step()  # the first step projects the images, so it is another program than later steps
            else:
                runner.run((self.num_images, len(self.done.rows), self.position.kv_length), self.step)
            if len(self.ends) and (t + 1) % runner.check_every == 0:
                num_open = self._num_open(synced)
                if num_open == 0:
                    break
                if not synced and num_open <= runner.shrink * len(self.done.rows):
                    self.drop_ended(runner)

    def step(self) -> None:
        """Draw and record the next token of every row; the host reads no value of any tensor."""
        index, done, origin = self.position.index, self.done.rows, self.origin.rows
        logits = self.next_logits(self.tokens.rows)
        logits = policy_logits(logits, self.temperature, self.suppressed)  # (R, V)
        uniforms = None if self.uniforms is None else self.uniforms.rows.index_select(1, index).squeeze(1)
        drawn, log_normalizer = draw(logits, uniforms)
        if self.logits_processor is not None:
            drawn = self.logits_processor(self.written(), logits.clone()).argmax(-1)  # type: ignore[arg-type]
        drawn = drawn.masked_fill(done, self.pad)
        logps = (logits.gather(-1, drawn[:, None]) - log_normalizer).squeeze(1)
        self.ids[origin, index] = drawn
        self.logps[origin, index] = logps.masked_fill(done, 0.0)
        if len(self.watched):
            logps = logits[:, self.watched] - log_normalizer  # (R, C)
            self.watched_logps[origin, index] = logps.masked_fill(done[:, None], 0.0)
        self.tokens.rows.copy_(drawn[:, None])
        done |= (drawn[:, None] == self.ends).any(-1)
        index += 1

    def written(self) -> Tensor:
        """Return the ids so far `(R, 1 + t)` of the rows at work, behind the start token, as in `generate`."""
        ids = self.ids[self.origin.rows, : self.position.step]
        return torch.nn.functional.pad(ids, (1, 0), value=self.start_id)

    def drop_ended(self, runner: EagerRunner) -> None:
        """Drop rows that have ended, if at most a share `runner.shrink` of the rows is left.

        Every image keeps as many rows as the image with the most open rows has, so that all images have the same
        number of rows. Images without an open row are dropped together with their keys and values.
        """
        is_open = ~self.done.rows.view(self.num_images, -1)  # (images, rows of each)
        num_open = is_open.sum(1)
        rows_each = runner.size(int(num_open.max()), is_open.shape[1])
        num_images = runner.size(int((num_open > 0).sum()), self.num_images)
        if num_images * rows_each > runner.shrink * len(self.done.rows):
            return
        images = _true_first(num_open > 0)[:num_images].sort().values  # sorted: if all are kept, none moves
        order = _true_first(is_open[images])[:, :rows_each]
        rows = (images[:, None] * is_open.shape[1] + order).flatten()
        self.next_logits.keep(images if num_images < self.num_images else None, rows)
        self.num_images = num_images
        for buffer in (self.origin, self.tokens, self.done, self.uniforms):
            if buffer is not None:
                buffer.keep(rows)

    def _num_open(self, synced: bool) -> int:
        num_open = (~self.done.rows).sum()
        if synced and dist.is_initialized():
            dist.all_reduce(num_open)
        return int(num_open)


def _true_first(flags: Tensor) -> Tensor:
    """Return the indices along the last dimension: first those of True, then those of False, each in order."""
    return flags.int().argsort(dim=-1, descending=True, stable=True)
