"""Step 2: tune the captioner for CIDEr (REINFORCE with eight samples an image, each against the other seven).

    python examples/tune_captioning.py --model runs/captioning-mle --images_dir coco --karpathy_file dataset_coco.json

The document frequencies are those of the training captions; they are saved beside the model. The options for the data
are those of captioning_data.py.
"""

from dataclasses import dataclass

from captioning_data import DataArguments, captioning_data
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward, DocumentFrequency, coco_captions


DEFAULTS = {
    "output_dir": "runs/captioning-tuned",
    "max_steps": 10_000,
    "per_device_train_batch_size": 32,  # paper: 256
    "num_generations": 8,
    "learning_rate": 1e-5,
    "encoder_learning_rate": 1e-6,
    "warmup_steps": 1000,
    "optim": "big_vision_adafactor",
    "max_completion_length": 32,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_steps": 500,
    "save_total_limit": 1,
}


@dataclass
class ScriptArguments:
    model: str = "runs/captioning-mle"
    freeze_encoder: bool = False


def cider_reward(processor: CaptioningProcessor, train_dataset, column: str = "captions") -> CiderReward:
    frequency = DocumentFrequency.from_references(list(train_dataset[column]), append_eos=True)
    return CiderReward(frequency, append_eos=True, eos_token_id=processor.tokenizer.eos_token_id)


def main(args: ScriptArguments, data_args: DataArguments, training_args: VisionRewardConfig) -> VisionRewardTrainer:
    model = VisionEncoderDecoderModel.from_pretrained(args.model)
    model.encoder.requires_grad_(not args.freeze_encoder)
    processor = CaptioningProcessor.from_pretrained(args.model)
    train_dataset, eval_dataset, _ = captioning_data(data_args)
    reward = cider_reward(processor, train_dataset, (training_args.target_columns or {}).get("captions", "captions"))
    if args.freeze_encoder:
        training_args.encoder_learning_rate = None
        train_dataset = models.EncodedDataset(train_dataset, model, processor)
        eval_dataset = models.EncodedDataset(eval_dataset, model, processor)
    trainer = VisionRewardTrainer(
        model=model,
        reward_funcs=reward,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=coco_captions,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DataArguments, VisionRewardConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
