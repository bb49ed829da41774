"""Step 2: tune the reader for what it is used for: the whole string right, and most of its characters (REINFORCE).

    python examples/pretrain_ocr.py --output_dir runs/ocr-mle
    python examples/tune_ocr.py --model runs/ocr-mle --output_dir runs/ocr-tuned
    accelerate launch --multi_gpu --num_processes 2 examples/tune_ocr.py --model runs/ocr-mle

Your own images: --dataset_name with columns `image` and `text`, --model any VisionEncoderDecoderModel that reads text.
"""

from dataclasses import dataclass

from datasets import load_dataset
from pretrain_ocr import digits
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.tasks.ocr import TextProcessor, character_accuracy_reward, character_error_rate, exact_match_reward


DEFAULTS = {
    "output_dir": "runs/ocr-tuned",
    "max_steps": 600,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "num_generations": 8,
    "optim": "big_vision_adafactor",  # the paper's optimiser, with its constant learning rate after warm-up
    "learning_rate": 1e-4,
    "warmup_steps": 10,
    "logging_steps": 25,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "no",
}


@dataclass
class ScriptArguments:
    model: str = "runs/ocr-mle"
    dataset_name: str | None = None  # default: the digits
    num_train_images: int = 24_000
    num_eval_images: int = 500


def main(script_args: ScriptArguments, training_args: VisionRewardConfig) -> VisionRewardTrainer:
    if script_args.dataset_name is None:
        train_dataset = digits("train", script_args.num_train_images)
        eval_dataset = digits("validation", script_args.num_eval_images)
    else:
        dataset = load_dataset(script_args.dataset_name)
        train_dataset, eval_dataset = dataset["train"], dataset["validation" if "validation" in dataset else "test"]
    trainer = VisionRewardTrainer(
        model=VisionEncoderDecoderModel.from_pretrained(script_args.model),
        reward_funcs=[exact_match_reward, character_accuracy_reward],
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=TextProcessor.from_pretrained(script_args.model),
        compute_metrics=character_error_rate,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, VisionRewardConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
