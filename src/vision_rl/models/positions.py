"""Sine-cosine position embeddings, as an option of the reference and as a start that learns faster from scratch."""

from typing import Any

import torch
from torch import nn
from transformers import VisionEncoderDecoderModel

from vision_rl.models.encoder import position_table


def sincos(positions: torch.Tensor, size: int) -> torch.Tensor:
    """`positions (N,)` as `(N, size)`: sines, then cosines, of wavelengths from 2 pi to 10000 times that."""
    frequencies = 10_000.0 ** (-torch.arange(size // 2) / max(size // 2 - 1, 1))
    angles = positions.float()[:, None] * frequencies  # (N, size / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos2d(height: int, width: int, hidden_size: int) -> torch.Tensor:
    """`(height * width, hidden_size)`, row by row: half for x, half for y (big_vision `models/vit.py`, MoCo v3)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sincos(x.flatten(), hidden_size // 2), sincos(y.flatten(), hidden_size // 2)], dim=1)


@torch.no_grad()
def init_sincos_positions(model: VisionEncoderDecoderModel) -> None:
    """Start the position embeddings of a new model, with our decoder, at sines and cosines; they are learned on.

    A small model trained from scratch finds sooner where its next token lies. A pretrained encoder keeps its own.
    """
    table, (height, width), num_class_tokens = position_table(model.encoder)
    table[num_class_tokens:] = sincos2d(height, width, table.shape[-1])
    decoder: Any = model.decoder
    positions: nn.Embedding = decoder.embed_positions
    positions.weight.copy_(sincos(torch.arange(positions.num_embeddings), positions.embedding_dim))
