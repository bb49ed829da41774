"""Stage II of panoptic segmentation: a ViT and the paper's decoder learn to write stage I's codes (MLE).

    python examples/train_uvim_stage1.py --output_dir runs/panoptic-stage1
    python examples/pretrain_panoptic.py --stage1 runs/panoptic-stage1 --output_dir runs/panoptic-mle

Stage I makes the labels as they are needed. The data's options are those of dense_data.py. The paper's run is
vision-rl mle --config panoptic_mle.
"""

from dataclasses import dataclass

from dense_data import DataArguments, panoptic_data
from transformers import VisionEncoderDecoderModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, models
from vision_rl.models.uvim import UViMDecoder, UViMModel, load_big_vision_vit
from vision_rl.tasks.panoptic import PanopticProcessor, PanopticQuality


DEFAULTS = {
    "output_dir": "runs/panoptic-mle",
    "max_steps": 10_000,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "pq",
}


@dataclass
class ModelArguments:
    stage1: str = "runs/panoptic-stage1"
    encoder: str | None = None  # big_vision's ViT (npz), or that of a VisionEncoderDecoderModel; None: a new one
    patch_size: int = 8
    hidden_size: int = 128
    num_encoder_layers: int = 3
    num_decoder_layers: int = 2
    num_attention_heads: int = 4
    mlp_ratio: int = 2  # width of the MLPs over hidden_size; the paper's: 4
    conv_stem: bool = True  # of a new encoder; a small one needs it, the paper's has none
    sincos_positions: bool = True  # where learned positions start, if the encoder is new; the paper's: at random


def code_writer(args: ModelArguments, stage1: UViMModel) -> VisionEncoderDecoderModel:
    """A ViT and the paper's decoder; token = code + 1, and token 0 is never written."""
    image_size = stage1.config.image_size
    size = {
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": args.mlp_ratio * args.hidden_size,
    }
    if args.encoder is not None and args.encoder.endswith(".npz"):
        encoder = load_big_vision_vit(args.encoder, image_size)
    elif args.encoder is not None:
        encoder = VisionEncoderDecoderModel.from_pretrained(args.encoder).encoder
        models.resize_position_embeddings(encoder, image_size)
    else:
        encoder = models.vit_encoder(
            image_size, args.patch_size, num_hidden_layers=args.num_encoder_layers, conv_stem=args.conv_stem, **size
        )
    tokens = {"vocab_size": stage1.config.codebook_size + 1, "max_position_embeddings": stage1.config.code_length}
    decoder = models.VisionDecoderForCausalLM(
        models.VisionDecoderConfig(**tokens, **size, num_hidden_layers=args.num_decoder_layers)
    )
    model = models.vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0)
    if args.encoder is None and args.sincos_positions:
        models.init_sincos_positions(model)
    model.generation_config.suppress_tokens = [0]
    return model


def main(args: ModelArguments, data_args: DataArguments, training_args: VisionMLEConfig) -> VisionMLETrainer:
    set_seed(training_args.seed)
    train_dataset, eval_dataset, _ = panoptic_data(data_args)
    stage1, processor = UViMModel.from_pretrained(args.stage1), PanopticProcessor.from_pretrained(args.stage1)
    trainer = VisionMLETrainer(
        model=code_writer(args, stage1),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=PanopticQuality(processor.categories),
        completion_decoder=UViMDecoder(stage1, processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ModelArguments, DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
