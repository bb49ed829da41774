"""Models that write tokens about images. Importing this package registers them with transformers' Auto classes."""

from vision_rl.models.conv_stem import ConvStemVisionConfig, ConvStemVisionModel
from vision_rl.models.decoder import VisionDecoderConfig, VisionDecoderForCausalLM
from vision_rl.models.encoded import EncodedDataset
from vision_rl.models.encoder import (
    load_encoder,
    load_image_processor,
    resize_position_embeddings,
    vision_encoder_decoder,
    vit_encoder,
)
from vision_rl.models.positions import init_sincos_positions, sincos2d
from vision_rl.models.uvim import UViMConfig, UViMModel


__all__ = [
    "ConvStemVisionConfig",
    "ConvStemVisionModel",
    "EncodedDataset",
    "UViMConfig",
    "UViMModel",
    "VisionDecoderConfig",
    "VisionDecoderForCausalLM",
    "init_sincos_positions",
    "load_encoder",
    "load_image_processor",
    "resize_position_embeddings",
    "sincos2d",
    "vision_encoder_decoder",
    "vit_encoder",
]
