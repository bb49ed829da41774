"""Step 2: tune the detector for recall, or for mAP with confidences that it learns on the way (REINFORCE).

    python examples/pretrain_detection.py --output_dir runs/detection-mle
    python examples/tune_detection.py --model runs/detection-mle --reward map --output_dir runs/detection-map
    accelerate launch --multi_gpu --num_processes 2 examples/tune_detection.py --model runs/detection-mle

The options for the data are those of pretrain_detection.py.
"""

from dataclasses import dataclass
from typing import Literal

from detection_data import DataArguments, detection_data
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor, RecallReward, coco_map


DEFAULTS = {
    "output_dir": "runs/detection-tuned",
    "max_steps": 1000,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 100,
    "num_generations": 4,
    "optim": "big_vision_adafactor",  # the paper's optimiser, with its constant learning rate after warm-up
    "learning_rate": 3e-5,
    "warmup_steps": 20,
    "logging_steps": 25,
    "eval_strategy": "steps",
    "eval_steps": 250,
    "save_strategy": "no",
}


@dataclass
class ScriptArguments(DataArguments):
    model: str = "runs/detection-mle"
    reward: Literal["recall", "map"] = "map"


def detection_reward(name: str, processor: DetectionProcessor, train_dataset) -> RecallReward | AveragePrecisionReward:
    sizes = (processor.num_bins, processor.num_labels)
    if name == "recall":
        return RecallReward(*sizes)
    return AveragePrecisionReward(*sizes, class_counts=processor.count_classes(train_dataset))


def main(script_args: ScriptArguments, training_args: VisionRewardConfig) -> VisionRewardTrainer:
    train_dataset, eval_dataset, _ = detection_data(script_args)
    processor = DetectionProcessor.from_pretrained(script_args.model)
    if script_args.reward == "map":
        processor.score = "confidence"  # now learned
    trainer = VisionRewardTrainer(
        model=VisionEncoderDecoderModel.from_pretrained(script_args.model),
        reward_funcs=detection_reward(script_args.reward, processor, train_dataset),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=coco_map,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, VisionRewardConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
