"""Write completions with one decoder for work of one shape, in the fastest way that the device and model allow."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vision_rl.models import cuda_graphs
from vision_rl.models.cache_position import CachePosition
from vision_rl.models.cast_weights import CastWeights
from vision_rl.models.cuda_graphs import CudaGraphRunner, addresses, kept_writers
from vision_rl.models.decode_step import ModelStep, takes_positions
from vision_rl.models.decoding import Decoding, EagerRunner
from vision_rl.models.fast_step import VisionStep, is_plain
from vision_rl.models.packed_linear import can_pack, packed_linears


class Work(NamedTuple):
    """Everything that writing depends on, except the decoder, the content of the images and the uniforms."""

    num_images: int  # B, or B*G for a decoder that needs each image repeated
    num_rows: int  # B*G
    length: int
    start: int
    pad: int
    ends: tuple[int, ...]
    suppressed: tuple[int, ...]
    do_sample: bool
    temperature: float
    watched_ids: tuple[int, ...]
    device: torch.device
    autocast: torch.dtype | None  # the dtype of matrix products under autocast
    synced: bool
    logits_processor: LogitsProcessorList | None = None  # changes the choice of greedy decoding


def writer_of(decoder: Any, work: Work) -> "Writer":
    """Return a new writer, or on a GPU, if the steps can be CUDA graphs, the kept writer of the same work.

    Raises:
        ValueError: for completions that are longer than the decoder's learned positions.
    """
    if work.length > getattr(decoder.config, "max_position_embeddings", work.length) and takes_positions(decoder):
        raise ValueError(
            f"Completions of {work.length} tokens do not fit the decoder's {decoder.config.max_position_embeddings} "
            "learned positions: make max_position_embeddings larger, or max_completion_length smaller."
        )
    if can_capture(decoder, work):
        key = (work, addresses(decoder), is_plain(decoder))
        return kept_writers(decoder).get(key, lambda: Writer(decoder, work, CudaGraphRunner()))
    return Writer(decoder, work, EagerRunner(check_every=1 if work.device.type == "cpu" else 8))


def can_capture(decoder: Any, work: Work) -> bool:
    """Return whether the steps can be CUDA graphs.

    They cannot if `synced`: ZeRO-3 and FSDP gather weights when a module is called, and a replay calls no module. They
    cannot with a `logits_processor` either, which is given one id more at each step.
    """
    return (
        work.device.type == cuda_graphs.DEVICE
        and takes_positions(decoder)
        and not work.synced
        and work.logits_processor is None
        and CudaGraphRunner.works
    )


class Writer:
    """Writes completions by a `Decoding`, whose steps run with cast or packed weights where that is faster."""

    def __init__(self, decoder: Any, work: Work, runner: EagerRunner):
        self.decoder, self.work, self.runner = decoder, work, runner
        self.casts: CastWeights | None = None
        if work.autocast is not None and not work.synced:
            self.casts = CastWeights(decoder, work.autocast)
        self.fast = is_plain(decoder) and not work.synced
        self.decoding: Decoding | None = None

    def write(self, images: Tensor, uniforms: Tensor | None, mask: Tensor | None = None) -> Decoding:
        """Write the completions about `images (B, N, d)`; sampling needs `uniforms (B*G, >= length)`.

        `mask (B, N)` is 0 where an image is padding. The result is overwritten by the next call.
        """
        with ExitStack() as stack:
            if self.casts is not None:
                stack.enter_context(self.casts.in_place())
            elif can_pack(self.work.device, self.work.length) and not self.work.synced:
                stack.enter_context(packed_linears(self.decoder))
            if self.decoding is None:
                self.decoding = self._make_decoding()
            self.decoding.start(images, uniforms, mask)
            self.decoding.write(self.runner, self.work.synced)
        return self.decoding

    def _make_decoding(self) -> Decoding:
        work = self.work
        position = CachePosition(work.length, work.device)
        step = VisionStep(self.decoder, position) if self.fast else ModelStep(self.decoder, position)
        ends, suppressed, watched = (
            torch.tensor(ids, dtype=torch.long, device=work.device)
            for ids in (work.ends, work.suppressed, work.watched_ids)
        )
        return Decoding(
            step,
            work.num_images,
            work.num_rows,
            start=work.start,
            pad=work.pad,
            ends=ends,
            suppressed=suppressed,
            temperature=work.temperature,
            do_sample=work.do_sample,
            watched=watched,
            logits_processor=work.logits_processor,
        )
