"""Stage II of colorization: a ViT and the paper's decoder see a grey photo and learn to write stage I's codes (MLE).

    python examples/train_uvim_stage1.py --task colorization --images_dir photos --output_dir runs/colorization-stage1
    python examples/pretrain_colorization.py --images_dir photos --output_dir runs/colorization-mle

Stage I makes the labels as they are needed. Without a folder of photos the images are scenes of digits (dense_data.py).
"""

import pretrain_panoptic
from dense_data import DataArguments, colorization_data
from pretrain_panoptic import ModelArguments, code_writer
from transformers import set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks.colorization import ColorizationProcessor, colorization_metrics


DEFAULTS = pretrain_panoptic.DEFAULTS | {"output_dir": "runs/colorization-mle", "metric_for_best_model": "loss"}


def main(args: ModelArguments, data_args: DataArguments, training_args: VisionMLEConfig) -> VisionMLETrainer:
    set_seed(training_args.seed)
    train_dataset, eval_dataset, _ = colorization_data(data_args)
    stage1, processor = UViMModel.from_pretrained(args.stage1), ColorizationProcessor.from_pretrained(args.stage1)
    trainer = VisionMLETrainer(
        model=code_writer(args, stage1),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=colorization_metrics,
        completion_decoder=UViMDecoder(stage1, processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ModelArguments, DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS, stage1="runs/colorization-stage1")
    main(*parser.parse_args_and_config())
