"""Stage I of panoptic segmentation: learn to write panoptic maps as codes, and to read them back (UViM).

    python examples/train_uvim_stage1.py --output_dir runs/panoptic-stage1

The quality of what is read back (`pq`) is the ceiling of all that follows. panoptic_data.py has the options for the
data; the sizes are for digit scenes of 64 pixels. Stage II is pretrain_panoptic.py, tuning tune_panoptic.py.
"""

from dataclasses import dataclass

from panoptic_data import DataArguments, panoptic_data
from transformers import ViTImageProcessorPil, set_seed
from trl import TrlParser

from vision_rl import Stage1Trainer, VisionMLEConfig
from vision_rl.models.uvim import UViMConfig, UViMModel
from vision_rl.tasks.panoptic import PanopticProcessor, PanopticQuality


DEFAULTS = {
    "output_dir": "runs/panoptic-stage1",
    "max_steps": 8000,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
    "max_grad_norm": 1.0,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "save_total_limit": 1,
}


@dataclass
class ModelArguments:
    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 128
    num_encoder_layers: int = 2
    num_decoder_layers: int = 4
    max_instances: int = 16  # void, and up to six digits and four grounds; with room
    num_codes: int = 256
    code_len: int = 16


def panoptic_processor(args: ModelArguments, categories: list[dict]) -> PanopticProcessor:
    size = {"height": args.image_size, "width": args.image_size}
    return PanopticProcessor(
        ViTImageProcessorPil(size=size),
        categories,
        max_instances=args.max_instances,
        num_codes=args.num_codes,
        code_len=args.code_len,
        flip=False,  # a mirrored digit is none
    )


def stage1_model(args: ModelArguments, processor: PanopticProcessor) -> UViMModel:
    return UViMModel(
        UViMConfig(
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_size=args.hidden_size,
            num_encoder_layers=args.num_encoder_layers,
            num_decoder_layers=args.num_decoder_layers,
            num_attention_heads=4,
            intermediate_size=2 * args.hidden_size,
            codebook_size=args.num_codes,
            code_dim=args.hidden_size,
            code_length=args.code_len,
            outputs={"semantics": processor.num_classes, "instances": args.max_instances},
        )
    )


def main(args: ModelArguments, data_args: DataArguments, training_args: VisionMLEConfig) -> Stage1Trainer:
    set_seed(training_args.seed)
    train_dataset, eval_dataset, categories = panoptic_data(data_args)
    processor = panoptic_processor(args, categories)
    trainer = Stage1Trainer(
        model=stage1_model(args, processor),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=PanopticQuality(categories),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ModelArguments, DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
