"""Sine-cosine positions equal those of the reference."""

import numpy as np
import pytest
import torch
from recorded import golden
from tiny import tiny_model

from vision_rl.models import init_sincos_positions, sincos2d


@pytest.mark.parametrize(("height", "width", "size"), [(4, 4, 32), (1, 16, 32), (3, 5, 8)])
def test_sincos2d_equals_the_reference(height, width, size):
    expected = golden("uvim_stage2.npz")[f"posemb_sincos2d/{height}x{width}x{size}"][0]
    np.testing.assert_allclose(sincos2d(height, width, size).numpy(), expected, atol=1e-6)


def test_sincos2d_by_hand():
    table = sincos2d(2, 2, 4)  # width 4 has one frequency: sin x, cos x, sin y, cos y
    sin, cos = np.sin(1), np.cos(1)
    np.testing.assert_allclose(
        table, [[0, 1, 0, 1], [sin, cos, 0, 1], [0, 1, sin, cos], [sin, cos, sin, cos]], atol=1e-6
    )


def test_a_new_model_starts_at_them_and_learns_on():
    model = tiny_model()
    init_sincos_positions(model)
    positions = model.encoder.embeddings.position_embedding.weight
    torch.testing.assert_close(positions.detach(), sincos2d(2, 2, 32))
    assert positions.requires_grad
    assert model.decoder.embed_positions.weight[0, :16].abs().max() == 0
