"""Sine-cosine position embeddings: an option of the reference, from which training from scratch is faster."""

from typing import Any

import torch
from torch import nn
from transformers import VisionEncoderDecoderModel

from vision_rl.models.encoder import position_table


def sincos(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Return the embeddings `(N, size)` of `positions (N,)`: sines, then cosines, of wavelengths 2 pi to 20000 pi."""
    frequencies = 10_000.0 ** (-torch.arange(size // 2) / max(size // 2 - 1, 1))
    angles = positions.float()[:, None] * frequencies  # (N, size / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos2d(height: int, width: int, hidden_size: int) -> torch.Tensor:
    """Return the embeddings `(height * width, hidden_size)` of a grid, row by row: half for x, half for y.

    The source is big_vision's `models/vit.py`, which follows MoCo v3.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sincos(x.flatten(), hidden_size // 2), sincos(y.flatten(), hidden_size // 2)], dim=1)


@torch.no_grad()
def init_sincos_positions(model: VisionEncoderDecoderModel) -> None:
    """Set the position embeddings of encoder and decoder to sines and cosines, in place; training still changes them.

    The decoder must be a `VisionDecoderForCausalLM`. A small model that is trained from scratch finds the place of its
    next token sooner with them. Do not use them with a pretrained encoder, whose position embeddings they overwrite.
    """
    table, (height, width), num_class_tokens = position_table(model.encoder)
    table[num_class_tokens:] = sincos2d(height, width, table.shape[-1])
    decoder: Any = model.decoder
    positions: nn.Embedding = decoder.embed_positions
    positions.weight.copy_(sincos(torch.arange(positions.num_embeddings), positions.embedding_dim))
