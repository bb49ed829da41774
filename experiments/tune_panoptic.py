"""Step 2 of panoptic segmentation: tune the model that writes codes for PQ (REINFORCE).

    python examples/tune_panoptic.py --model runs/panoptic-mle --output_dir runs/panoptic-pq

Each sample is read back by stage I and compared with the true map. The data's options are those of dense_data.py. The
paper's run: vision-rl tune --config panoptic_pq.
"""

from dataclasses import dataclass

from dense_data import DataArguments, panoptic_data
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks.panoptic import PanopticProcessor, PanopticQuality, PanopticReward


DEFAULTS = {
    "output_dir": "runs/panoptic-pq",
    "max_steps": 500,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "learning_rate": 1e-4,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "warmup_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "no",
}


@dataclass
class ScriptArguments:
    model: str = "runs/panoptic-mle"


def main(args: ScriptArguments, data_args: DataArguments, training_args: VisionRewardConfig) -> VisionRewardTrainer:
    train_dataset, eval_dataset, _ = panoptic_data(data_args)
    processor = PanopticProcessor.from_pretrained(args.model)
    trainer = VisionRewardTrainer(
        model=VisionEncoderDecoderModel.from_pretrained(args.model),
        reward_funcs=PanopticReward(),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=PanopticQuality(processor.categories),
        completion_decoder=UViMDecoder(UViMModel.from_pretrained(args.model, subfolder="stage1"), processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DataArguments, VisionRewardConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
