"""One step of decoding: the logits of the next token of every row, given the cached keys and values of earlier tokens.

A step needs nothing but shapes from the host: the position is a tensor on the device, and keys and values lie in
buffers whose place in memory stays the same from one rollout to the next. So a step can be captured as a CUDA graph.
"""

from typing import Any, Protocol

from torch import Tensor
from transformers import BertLMHeadModel, Cache, EncoderDecoderCache, GPT2LMHeadModel, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from vision_rl.compatibility import named
from vision_rl.models.cache_position import CachePosition
from vision_rl.models.decoder import VisionDecoderForCausalLM
from vision_rl.models.row_buffer import RowBuffer, buffer_like


class DecodeStep(Protocol):
    """The interface of a step, as `Decoding` calls it."""

    position: CachePosition

    def start(self, images: Tensor, mask: Tensor | None) -> None:
        """Begin a rollout about `images (B, N, d)`, or `(B*G, N, d)` for a decoder that needs each image repeated.

        `mask (B, N)` has as many rows as `images`, and is 0 where an image is padding.
        """

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits `(R, V)` that follow `tokens (R, 1)`."""
        raise NotImplementedError

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        """Go on with the images and the rows of these indices only; `images` is None where all images are kept."""


class ModelStep:
    """A step that calls the forward of the decoder, whichever decoder it is."""

    def __init__(self, decoder: PreTrainedModel, position: CachePosition):
        self.decoder, self.position = decoder, position
        self.takes_positions = takes_positions(decoder)
        self.images: RowBuffer | None = None
        self.mask: RowBuffer | None = None
        self.cache = EncoderDecoderCache(
            Cache(layer_class_to_replicate=lambda: TokenLayer(position)),  # type: ignore[arg-type]
            Cache(layer_class_to_replicate=ImageLayer),
        )

    def start(self, images: Tensor, mask: Tensor | None) -> None:
        self.mask = None if mask is None else buffer_like(mask)
        if self.images is None:
            self.images = buffer_like(images)
        else:
            self.images.restart(images)
            self.cache.is_updated = dict.fromkeys(self.cache.is_updated, False)  # the first step projects the images
            for cache in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
                for layer in cache.layers:
                    layer.restart()  # type: ignore[union-attr]

    def __call__(self, tokens: Tensor) -> Tensor:
        assert self.images is not None, "start(images) comes first"
        given: dict[str, Any] = {}
        if self.takes_positions:
            given = {"position_ids": self.position.index[None], "attention_mask": self.position.mask()}
        if self.mask is not None:
            given["encoder_attention_mask"] = self.mask.rows
        outputs = self.decoder(
            input_ids=tokens,
            encoder_hidden_states=self.images.rows,
            use_cache=True,
            return_dict=True,
            **named(self.cache),
            **given,
        )
        return outputs.logits[:, -1]

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        self.cache.self_attention_cache.batch_select_indices(rows)
        if images is not None:
            assert self.images is not None, "start(images) comes first"
            self.images.keep(images)
            if self.mask is not None:
                self.mask.keep(images)
            self.cache.cross_attention_cache.batch_select_indices(images)


def takes_positions(decoder: PreTrainedModel) -> bool:
    """Return whether the decoder's forward takes position and mask as tensors, and so needs nothing from the host."""
    return isinstance(decoder, VisionDecoderForCausalLM) or (
        isinstance(decoder, GPT2LMHeadModel | BertLMHeadModel) and decoder.config._attn_implementation == "sdpa"
    )


class BufferedLayer(DynamicLayer):
    """The keys and values of one layer, in buffers that are made once and used by every rollout."""

    buffers: tuple[RowBuffer, RowBuffer]
    keys: Any  # the rows of the first buffer that are in use
    values: Any  # the rows of the second buffer that are in use

    def restart(self) -> None:
        for buffer in self.buffers:
            buffer.restart()
        self.keys, self.values = (buffer.rows for buffer in self.buffers)

    def batch_select_indices(self, indices: Tensor) -> None:
        for buffer in self.buffers:
            buffer.keep(indices)
        self.keys, self.values = (buffer.rows for buffer in self.buffers)


class TokenLayer(BufferedLayer):
    """Keys and values `(R, heads, length, D)` of self-attention; every step adds one token to the buffers."""

    def __init__(self, position: CachePosition):
        super().__init__()
        self.position = position

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        shapes = ((*states.shape[:2], self.position.length, states.shape[-1]) for states in (key_states, value_states))
        # zeros, because a masked token's weight of 0 times garbage may be NaN
        self.buffers = tuple(RowBuffer(key_states.new_zeros(shape)) for shape in shapes)  # type: ignore[assignment]
        self.keys, self.values = (buffer.rows for buffer in self.buffers)  # (R, heads, length, D)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self.keys.index_copy_(2, self.position.index, key_states)
        values = self.values.index_copy_(2, self.position.index, value_states)
        return keys[:, :, : self.position.kv_length], values[:, :, : self.position.kv_length]

    def get_seq_length(self) -> int:
        return self.position.step


class ImageLayer(BufferedLayer):
    """Keys and values `(B, heads, N, D)` of cross-attention, which only the first step of a rollout writes."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = RowBuffer(key_states), RowBuffer(value_states)
        else:
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer.restart(states)
        self.keys, self.values = (buffer.rows for buffer in self.buffers)
        return self.keys, self.values
