"""Step 2 of colorization: tune the model that writes codes for colourful pictures (REINFORCE).

    python examples/tune_colorization.py --images_dir photos --model runs/colorization-mle

The reward needs no label, and is easy to overdo (docs/colorization.md). `--reward_weights 1 5` pays for likeness to the
photo too, `--beta 0.05` holds on to the MLE model, and a warning comes when PSNR falls while the reward rises.
"""

from dataclasses import dataclass

import tune_panoptic
from dense_data import DataArguments, colorization_data
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks.colorization import (
    ColorfulnessReward,
    ColorizationProcessor,
    colorization_metrics,
    fidelity_reward,
)
from vision_rl.trainer.callbacks import RewardMetricDivergenceCallback


DEFAULTS = tune_panoptic.DEFAULTS | {
    "output_dir": "runs/colorization-vivid",
    "reward_weights": [1.0, 0.0],  # colourfulness; likeness to the photo, which the paper does not pay for
}


@dataclass
class ScriptArguments:
    model: str = "runs/colorization-mle"


def main(args: ScriptArguments, data_args: DataArguments, training_args: VisionRewardConfig) -> VisionRewardTrainer:
    train_dataset, eval_dataset, _ = colorization_data(data_args)
    processor = ColorizationProcessor.from_pretrained(args.model)
    trainer = VisionRewardTrainer(
        model=VisionEncoderDecoderModel.from_pretrained(args.model),
        reward_funcs=[ColorfulnessReward(), fidelity_reward],
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=colorization_metrics,
        callbacks=[RewardMetricDivergenceCallback("psnr")],
        completion_decoder=UViMDecoder(UViMModel.from_pretrained(args.model, subfolder="stage1"), processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DataArguments, VisionRewardConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
