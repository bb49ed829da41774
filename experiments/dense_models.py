"""The model of the experiments with codes: a small ViT and the paper's decoder, which writes the codes of stage I."""

from dataclasses import dataclass

from transformers import VisionEncoderDecoderModel

from vision_rl import models
from vision_rl.models.description import make_decoder, make_encoder, make_model, transformer_size
from vision_rl.models.uvim import UViMModel
from vision_rl.processing import DenseProcessor


MLE_DEFAULTS = {
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
}
TUNE_DEFAULTS = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "learning_rate": 1e-4,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "warmup_steps": 20,
    "eval_strategy": "steps",
}


@dataclass
class ModelArguments:
    stage1: str = "runs/panoptic-stage1"
    encoder: str | None = None  # a ViT of big_vision (npz), or a folder whose model has one; None: a new one
    patch_size: int = 8
    hidden_size: int = 128
    num_encoder_layers: int = 3
    num_decoder_layers: int = 2
    num_attention_heads: int = 4
    mlp_ratio: int = 2  # width of the MLPs over hidden_size; the paper's: 4
    conv_stem: bool = True  # only of a new encoder: small ones need it, the paper's has none
    sincos_positions: bool = True  # how a new encoder's learned positions start; the paper's: at random


def code_writer(args: ModelArguments, stage1: UViMModel, processor: DenseProcessor) -> VisionEncoderDecoderModel:
    """A ViT and the paper's decoder. Token = code + 1; token 0 is never written."""
    size = transformer_size(
        "vit-b16",
        hidden_size=args.hidden_size,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=args.mlp_ratio * args.hidden_size,
    )
    layers = {"num_hidden_layers": args.num_encoder_layers}
    encoder = make_encoder(stage1.config.image_size, size | layers, args.patch_size, args.conv_stem, args.encoder)
    layers = {"num_hidden_layers": args.num_decoder_layers}
    decoder = make_decoder(processor.vocab_size, processor.code_len, size | layers)
    model = make_model(processor, encoder, decoder)
    if args.encoder is None and args.sincos_positions:
        models.init_sincos_positions(model)
    return model
