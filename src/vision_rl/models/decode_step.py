"""One step of decoding: the logits of the next token of every row, from the tokens before it that a cache holds.

A step depends on the host for nothing but shapes: the position is a tensor on the device, keys and values lie in
buffers of the full length that stay where they are. So it can be captured as a CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertLMHeadModel, Cache, DynamicCache, EncoderDecoderCache, GPT2LMHeadModel, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from vision_rl.compatibility import named
from vision_rl.models.decoder import (
    VisionDecoderCrossAttention,
    VisionDecoderForCausalLM,
    VisionDecoderLayer,
    VisionDecoderMLP,
    VisionDecoderSelfAttention,
)


class Clock:
    """Which token is being written: on the device for the step, on the host for what chooses its shapes."""

    step: int
    seen: int  # cached tokens that attention is given
    bucket: int

    def __init__(self, length: int, device: torch.device):
        self.length = length
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.set(0)

    def set(self, step: int, bucket: int = 1) -> None:
        """The host's side; attention is given a multiple of `bucket` tokens and a mask, or exactly the tokens so far."""
        self.step, self.bucket = step, bucket
        self.seen = min((step // bucket + 1) * bucket, self.length)

    def mask(self) -> Tensor | None:
        """True for the tokens written so far, of those that attention is given: `(1, 1, 1, seen)`."""
        if self.bucket == 1:
            return None
        return (torch.arange(self.seen, device=self.position.device) <= self.position)[None, None, None]


def decode_step(decoder: Any, images: Tensor, clock: Clock, synced: bool) -> "OwnForwardStep | VisionStep":
    """The fastest step that is right for `decoder`.

    Weights that are gathered when a module is called (`synced`), hooks and replaced forwards want the modules to be
    called as they are.

    Raises:
        ValueError: for more tokens than the decoder has positions.
    """
    if takes_positions(decoder) and clock.length > decoder.config.max_position_embeddings:
        raise ValueError(
            f"Completions of {clock.length} tokens do not fit the decoder's {decoder.config.max_position_embeddings} "
            "learned positions: make max_position_embeddings larger, or max_completion_length smaller."
        )
    if _is_plain(decoder) and not synced and not any(_is_watched(module) for module in decoder.modules()):
        return VisionStep(decoder, images, clock)
    return OwnForwardStep(decoder, images, clock, synced)


def takes_positions(decoder: PreTrainedModel) -> bool:
    """Whether the decoder's forward can be given position and mask as tensors, and then asks the host for nothing."""
    return isinstance(decoder, VisionDecoderForCausalLM) or (
        isinstance(decoder, GPT2LMHeadModel | BertLMHeadModel) and decoder.config._attn_implementation == "sdpa"
    )


def _is_plain(decoder: PreTrainedModel) -> bool:
    """Whether the decoder and its parts are ours and no subclass, whose forward may be another."""
    kinds = (VisionDecoderSelfAttention, VisionDecoderCrossAttention, VisionDecoderMLP)
    return type(decoder) is VisionDecoderForCausalLM and all(
        type(layer) is VisionDecoderLayer and tuple(map(type, (layer.self_attn, layer.cross_attn, layer.mlp))) == kinds
        for layer in decoder.layers
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to see or replace the module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


# --- any decoder ----------------------------------------------------------------------------------------------------


class OwnForwardStep:
    """A step by the decoder's own forward. `images` is (B, N, d), or (B*G, N, d) where the decoder wants them repeated."""

    def __init__(self, decoder: PreTrainedModel, images: Tensor, clock: Clock, synced: bool):
        self.decoder, self.images, self.clock = decoder, images, clock
        self.takes_positions = takes_positions(decoder)
        self.capturable = self.takes_positions and not synced
        self.cache = EncoderDecoderCache(
            Cache(layer_class_to_replicate=lambda: StepLayer(clock)),  # type: ignore[arg-type]
            DynamicCache(),
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """`tokens (R, 1)` -> logits `(R, V)`."""
        given: dict[str, Any] = {}
        if self.takes_positions:
            given = {"position_ids": self.clock.position[None], "attention_mask": self.clock.mask()}
        outputs = self.decoder(
            input_ids=tokens,
            encoder_hidden_states=self.images,
            use_cache=True,
            return_dict=True,
            **named(self.cache),
            **given,
        )
        return outputs.logits[:, -1]

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        """Go on with these of the `images` (None: all of them) and `rows` only."""
        self.cache.self_attention_cache.batch_select_indices(rows)
        if images is not None:
            self.images = self.images[images]
            self.cache.cross_attention_cache.batch_select_indices(images)


class StepLayer(DynamicLayer):
    """One layer's keys and values in buffers of the full length, into which every step writes one token."""

    keys: Any  # (R, heads, length, D) from the first step on
    values: Any

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        rows, heads, _, width = key_states.shape
        # zeros, because a masked token's weight of 0 times garbage may be NaN
        self.keys = key_states.new_zeros(rows, heads, self.clock.length, width)
        self.values = value_states.new_zeros(rows, heads, self.clock.length, value_states.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self.keys.index_copy_(2, self.clock.position, key_states)
        values = self.values.index_copy_(2, self.clock.position, value_states)
        return keys[:, :, : self.clock.seen], values[:, :, : self.clock.seen]  # (rows, heads, seen, D)

    def get_seq_length(self) -> int:
        return self.clock.step

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


# --- our decoder ----------------------------------------------------------------------------------------------------


class VisionStep:
    """A step of `VisionDecoderForCausalLM`: the same numbers with less Python, no cache object and no checks.

    What the decoder's own forward takes more is 3 to 7 % of a step of 6 layers x 384 on one core, and a fifth to a third
    of a step of a small decoder, as one trains without a GPU.
    """

    capturable = True

    def __init__(self, decoder: VisionDecoderForCausalLM, images: Tensor, clock: Clock):
        self.clock = clock
        packs = _packs_weights(images, clock)
        self.embed_tokens, self.embed_positions = _forward(decoder.embed_tokens), _forward(decoder.embed_positions)
        self.layers = [LayerStep(layer, images, clock, packs) for layer in decoder.layers]
        self.layer_norm, self.lm_head = _forward(decoder.layer_norm), _forward(decoder.lm_head, packs)

    def __call__(self, tokens: Tensor) -> Tensor:
        """`tokens (R, 1)` -> logits `(R, V)`."""
        x = self.embed_tokens(tokens) + self.embed_positions(self.clock.position)  # (R, 1, width)
        mask = self.clock.mask()
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.layer_norm(x))[:, -1]

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        """Go on with these of the `images` (None: all of them) and `rows` only."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
            if images is not None:
                layer.image_keys, layer.image_values = layer.image_keys[images], layer.image_values[images]


class LayerStep:
    """A `VisionDecoderLayer` for one token a row, with its keys and values, and those of the images."""

    keys: Tensor  # (R, length, width)
    values: Tensor

    def __init__(self, layer: Any, images: Tensor, clock: Clock, packs: bool):
        own, cross, mlp = layer.self_attn, layer.cross_attn, layer.mlp
        self.clock, self.num_heads, self.started = clock, own.num_heads, False
        self.norm1, self.norm2, self.norm3 = map(_forward, (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3))
        self.activation = mlp.activation_fn.forward
        linears = (own.q_proj, own.k_proj, own.v_proj, own.out_proj, cross.q_proj, cross.out_proj, mlp.fc1, mlp.fc2)
        forwards = (_forward(linear, packs) for linear in linears)
        self.q, self.k, self.v, self.out, self.image_q, self.image_out, self.fc1, self.fc2 = forwards
        self.image_keys = cross.split_heads(cross.k_proj(images))  # (B, heads, N, D)
        self.image_values = cross.split_heads(cross.v_proj(images))

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, _, width = x.shape
        heads, seen = self.num_heads, self.clock.seen
        h = self.norm1(x)
        q, k, v = self.q(h), self.k(h), self.v(h)  # (R, 1, width)
        if not self.started:
            self.started = True
            self.keys, self.values = (k.new_zeros(rows, self.clock.length, width) for _ in range(2))
        self.keys.index_copy_(1, self.clock.position, k)
        self.values.index_copy_(1, self.clock.position, v)
        k, v = (past[:, :seen].view(rows, seen, heads, -1).transpose(1, 2) for past in (self.keys, self.values))
        h = F.scaled_dot_product_attention(q.view(rows, heads, 1, -1), k, v, attn_mask=mask)  # (R, heads, 1, D)
        x = x + self.out(h.reshape(rows, 1, width))

        # the rows of an image are queries on one copy of its keys and values
        q = self.image_q(self.norm2(x)).view(len(self.image_keys), -1, heads, width // heads).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, self.image_keys, self.image_values)  # (B, heads, R / B, D)
        x = x + self.image_out(h.transpose(1, 2).reshape(rows, 1, width))
        return x + self.fc2(self.activation(self.fc1(self.norm3(x))))


def _packs_weights(images: Tensor, clock: Clock) -> bool:
    """Whether large weights are packed for oneDNN, which takes as long as 4 to 8 products and then pays at each step."""
    return (
        images.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and clock.length >= 16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _forward(module: nn.Module, packs: bool = False) -> Callable[[Tensor], Tensor]:
    """What computes the module: its bare forward, or where something is wrapped around it (LoRA) the module itself."""
    if packs and type(module) is nn.Linear and PackedLinear.pays(module.weight):
        return PackedLinear(module)
    return module.forward if type(module) in (nn.Linear, nn.LayerNorm, nn.Embedding) else module


class PackedLinear:
    """An `nn.Linear` on a CPU whose weights, as they are now, stand in the order in which oneDNN reads them."""

    FEW_ROWS = 8  # the order is chosen for so many; it serves any number

    @staticmethod
    def pays(weight: Tensor) -> bool:
        """A call takes 30 microseconds more, which small weights do not make up for."""
        return weight.dtype == torch.float32 and weight.numel() >= 2**17

    def __init__(self, linear: nn.Linear):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.FEW_ROWS)
        self.bias = linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
