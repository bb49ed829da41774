"""Stage I of panoptic segmentation or colorization (UViM): learn to write dense maps as codes, and to read them back.

    python experiments/train_uvim_stage1.py --output_dir runs/panoptic-stage1
    python experiments/train_uvim_stage1.py --task colorization --images_dir photos --output_dir runs/colorization-stage1

The quality of the maps that are read back is the ceiling of stage II, which is dense_study.py. dense_data.py has the
options for the data. The sizes here are for images of 64 pixels; the paper's runs are `vision-rl stage1` with
`--config panoptic_stage1` or `--config colorization_stage1`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dense_data import DataArguments, categories_of, colorization_data, panoptic_data
from transformers import ViTImageProcessorPil, set_seed
from trl import TrlParser

from vision_rl import Stage1Trainer, VisionMLEConfig
from vision_rl.models.uvim import UViMConfig, UViMModel
from vision_rl.tasks.colorization import ColorizationProcessor, colorization_metrics
from vision_rl.tasks.panoptic import PanopticProcessor, PanopticQuality


DEFAULTS = {
    "output_dir": "runs/panoptic-stage1",
    "max_steps": 8000,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 150,
    "max_grad_norm": 1.0,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "save_total_limit": 1,
}


@dataclass
class ModelArguments:
    task: Literal["panoptic", "colorization"] = "panoptic"
    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 128
    num_encoder_layers: int = 2
    num_decoder_layers: int = 4
    num_attention_heads: int = 4
    mlp_ratio: int = 2  # width of the MLPs over hidden_size; the paper's: 4
    max_instances: int = 8  # void, up to three digits and four kinds of ground
    num_codes: int = 256
    code_len: int = 16
    code_dropout: str = "none"  # the paper's: "random", which takes longer to learn
    codebook_momentum: float = 0.99  # the paper's: 0.995
    crop_area: list[float] | None = None  # of random crops; None: whole maps, photos 0.3 to 1; the paper's: 0.05 1
    keep_luminance: bool = True  # predictions take their lightness from the photo; the paper's do not


def dense_task(
    args: ModelArguments, data_args: DataArguments
) -> tuple[PanopticProcessor | ColorizationProcessor, Callable]:
    """The processor, and the metric of the maps that are read back."""
    image_processor = ViTImageProcessorPil(size={"height": args.image_size, "width": args.image_size})
    codes = {"num_codes": args.num_codes, "code_len": args.code_len}
    if args.task == "colorization":
        colors = {"keep_luminance": args.keep_luminance, "crop_area": args.crop_area or (0.3, 1.0)}
        return ColorizationProcessor(image_processor, **codes, **colors), colorization_metrics
    categories = categories_of(data_args)
    flip = data_args.annotation_file is not None  # digits are not mirrored: the result is no digit
    maps = {"max_instances": args.max_instances, "crop_area": args.crop_area, "flip": flip}
    return PanopticProcessor(image_processor, categories, **codes, **maps), PanopticQuality(categories)


def stage1_model(args: ModelArguments, processor: PanopticProcessor | ColorizationProcessor) -> UViMModel:
    return UViMModel(
        UViMConfig(
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_size=args.hidden_size,
            num_encoder_layers=args.num_encoder_layers,
            num_decoder_layers=args.num_decoder_layers,
            num_attention_heads=args.num_attention_heads,
            intermediate_size=args.mlp_ratio * args.hidden_size,
            codebook_size=args.num_codes,
            code_dim=args.hidden_size,
            code_length=args.code_len,
            code_dropout=args.code_dropout,
            codebook_momentum=args.codebook_momentum,
            outputs=processor.outputs,
            regression=args.task == "colorization",
        )
    )


def main(args: ModelArguments, data_args: DataArguments, training_args: VisionMLEConfig) -> Stage1Trainer:
    set_seed(training_args.seed)
    data = (panoptic_data if args.task == "panoptic" else colorization_data)(data_args)
    processor, compute_metrics = dense_task(args, data_args)
    trainer = Stage1Trainer(
        model=stage1_model(args, processor),
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ModelArguments, DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
