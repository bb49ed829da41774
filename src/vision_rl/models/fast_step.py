"""A step of `VisionDecoderForCausalLM` with less Python than `ModelStep`, and with the same results.

On one core the decode loop is 1.1 times as fast with 6 layers of width 384, and 1.3 to 1.4 times as fast with 2 layers
of width 64, a size that is trained without a GPU (`python benchmarks/ways.py`). A CUDA graph runs no Python, so both
kinds of step should take the same time there.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vision_rl.models.cache_position import CachePosition
from vision_rl.models.decoder import (
    VisionDecoderCrossAttention,
    VisionDecoderForCausalLM,
    VisionDecoderLayer,
    VisionDecoderMLP,
    VisionDecoderSelfAttention,
)
from vision_rl.models.row_buffer import RowBuffer


def is_plain(decoder: nn.Module) -> bool:
    """Return whether the decoder and its parts are this package's own classes, without hooks or replaced forwards."""
    kinds = (VisionDecoderSelfAttention, VisionDecoderCrossAttention, VisionDecoderMLP)
    return (
        type(decoder) is VisionDecoderForCausalLM
        and all(
            type(layer) is VisionDecoderLayer
            and tuple(map(type, (layer.self_attn, layer.cross_attn, layer.mlp))) == kinds
            for layer in decoder.layers
        )
        and not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in decoder.modules()
        )
    )


class VisionStep:
    """A step of `VisionDecoderForCausalLM` without a cache object, checks, and the overhead of module calls."""

    def __init__(self, decoder: VisionDecoderForCausalLM, position: CachePosition):
        self.position = position
        self.embed_tokens, self.embed_positions = _call(decoder.embed_tokens), _call(decoder.embed_positions)
        self.layers = [LayerStep(layer, position) for layer in decoder.layers]
        self.layer_norm, self.lm_head = _call(decoder.layer_norm), _call(decoder.lm_head)

    def start(self, images: Tensor, mask: Tensor | None) -> None:
        assert mask is None, "a VisionEncoderDecoderModel has no padding in its images"
        for layer in self.layers:
            layer.start(images)

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens) + self.embed_positions(self.position.index)  # (R, 1, width)
        mask = self.position.mask()
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.layer_norm(x))[:, -1]

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        for layer in self.layers:
            layer.keep(images, rows)


class LayerStep:
    """A `VisionDecoderLayer` for one token a row, with the keys and values of the tokens and of the images."""

    past: tuple[RowBuffer, ...] = ()  # keys and values (R, length, width) of the tokens; empty before the first token
    images: tuple[RowBuffer, ...] = ()  # keys and values (B, heads, N, D) of the images

    def __init__(self, layer: Any, position: CachePosition):
        self.position, self.num_heads = position, layer.self_attn.num_heads
        self.norm1, self.norm2, self.norm3 = map(_call, (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3))
        self.q = _call(layer.self_attn.q_proj)
        self.k = _call(layer.self_attn.k_proj)
        self.v = _call(layer.self_attn.v_proj)
        self.out = _call(layer.self_attn.out_proj)
        self.image_q = _call(layer.cross_attn.q_proj)
        self.image_out = _call(layer.cross_attn.out_proj)
        self.fc1, self.activation, self.fc2 = (
            _call(layer.mlp.fc1),
            layer.mlp.activation_fn.forward,
            _call(layer.mlp.fc2),
        )
        self.cross_attn = layer.cross_attn

    def start(self, images: Tensor) -> None:
        """Project `images (B, N, d)` to keys and values, and forget the tokens of the last rollout."""
        cross = self.cross_attn
        keys_and_values = (cross.split_heads(proj(images)) for proj in (cross.k_proj, cross.v_proj))
        if not self.images:
            self.images = tuple(RowBuffer(projected) for projected in keys_and_values)
        else:
            for buffer, projected in zip(self.images, keys_and_values, strict=True):
                buffer.restart(projected)
        for buffer in self.past:
            buffer.restart()

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, _, width = x.shape
        heads, kv_length = self.num_heads, self.position.kv_length
        h = self.norm1(x)
        q, k, v = self.q(h), self.k(h), self.v(h)  # (R, 1, width)
        if not self.past:
            self.past = tuple(RowBuffer(k.new_zeros(rows, self.position.length, width)) for _ in range(2))
        keys, values = (buffer.rows for buffer in self.past)
        keys.index_copy_(1, self.position.index, k)
        values.index_copy_(1, self.position.index, v)
        k, v = (past[:, :kv_length].view(rows, kv_length, heads, -1).transpose(1, 2) for past in (keys, values))
        h = F.scaled_dot_product_attention(q.view(rows, heads, 1, -1), k, v, attn_mask=mask)  # (R, heads, 1, D)
        x = x + self.out(h.reshape(rows, 1, width))

        # the tokens of an image's rows are queries on one copy of the image's keys and values
        keys, values = (buffer.rows for buffer in self.images)
        q = self.image_q(self.norm2(x)).view(len(keys), -1, heads, width // heads).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, keys, values)  # (B, heads, R / B, D)
        x = x + self.image_out(h.transpose(1, 2).reshape(rows, 1, width))
        return x + self.fc2(self.activation(self.fc1(self.norm3(x))))

    def keep(self, images: Tensor | None, rows: Tensor) -> None:
        for buffer in self.past:
            buffer.keep(rows)
        if images is not None:
            for buffer in self.images:
                buffer.keep(images)


def _call(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the bound `forward` of a plain layer, which skips the overhead of a module call.

    A wrapped layer, such as one inside LoRA, is returned itself, to be called as a module.
    """
    return module.forward if type(module) in (nn.Linear, nn.LayerNorm, nn.Embedding) else module
