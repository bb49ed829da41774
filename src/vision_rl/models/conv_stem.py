"""A ViT whose patch embedding is a few small convolutions. Trained from scratch, it learns positions much sooner."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, SiglipVisionConfig, SiglipVisionModel


class ConvStemVisionConfig(SiglipVisionConfig):
    """Configuration of a `ConvStemVisionModel`: a `SiglipVisionConfig` whose `patch_size` is a power of two."""

    model_type = "conv_stem_vision"


class ConvStem(nn.Sequential):
    """A patch embedding from `(B, C, H, W)` to `(B, hidden_size, H / patch_size, W / patch_size)`.

    Its layers are 3x3 convolutions of stride 2, and a 1x1 convolution at the end. The stem follows Xiao et al. 2021
    (arXiv 2106.14881), with GroupNorm in place of BatchNorm, so that an image's patches do not depend on its batch.
    Raises `ValueError` for a `patch_size` that is no power of two, at least 2, and for a `hidden_size` that is no
    multiple of `4 * patch_size`.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_size: int):
        depth = round(math.log2(patch_size)) if patch_size > 0 else 0
        if 2**depth != patch_size or depth == 0 or hidden_size % 2 ** (depth + 2):
            raise ValueError(
                f"A convolutional stem needs a patch_size that is a power of two and a hidden_size that is a multiple "
                f"of {4 * patch_size}; they are {patch_size} and {hidden_size}."
            )
        layers: list[nn.Module] = []
        width = num_channels
        for level in reversed(range(depth)):
            narrower, width = width, hidden_size // 2**level
            layers += [
                nn.Conv2d(narrower, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.GELU(),
            ]
        super().__init__(*layers, nn.Conv2d(width, hidden_size, 1))

    @property
    def weight(self) -> torch.Tensor:
        """Return the last layer's weight, from which `SiglipVisionModel` reads the dtype that it casts pixels to."""
        last: Any = self[-1]
        return last.weight


class ConvStemVisionModel(SiglipVisionModel):
    """A `SiglipVisionModel` with a `ConvStem` as its patch embedding."""

    config_class = ConvStemVisionConfig
    config: ConvStemVisionConfig

    def __init__(self, config: ConvStemVisionConfig):
        super().__init__(config)
        patch_size: Any = config.patch_size
        embeddings: Any = self.embeddings
        embeddings.patch_embedding = ConvStem(config.num_channels, config.hidden_size, patch_size)
        self.post_init()


AutoConfig.register(ConvStemVisionConfig.model_type, ConvStemVisionConfig, exist_ok=True)
AutoModel.register(ConvStemVisionConfig, ConvStemVisionModel, exist_ok=True)
