"""What writes the tokens. Importing it lets transformers' Auto classes load `vision_decoder` checkpoints."""

from vision_rl.models.decoder import VisionDecoderConfig, VisionDecoderForCausalLM
from vision_rl.models.encoder import (
    load_encoder,
    resize_position_embeddings,
    vision_encoder_decoder,
    vit_encoder,
)


__all__ = [
    "VisionDecoderConfig",
    "VisionDecoderForCausalLM",
    "load_encoder",
    "resize_position_embeddings",
    "vision_encoder_decoder",
    "vit_encoder",
]
