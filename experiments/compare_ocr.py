"""Imitation, then tuning for the reward, compared with more imitation: a few minutes on two CPU cores.

    python experiments/compare_ocr.py

A small vision transformer reads strings of real handwritten digits. It is trained by maximum likelihood (MLE), then tuned
for two rewards: "the whole string is right" and "most characters are right". The control continues MLE instead, for at
least as many steps and about as long. No digit of the test images occurs in training. Writes runs/ocr/.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    Trainer,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    set_seed,
)
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.handwriting import digit_strings
from vision_rl.models import (
    VisionDecoderConfig,
    VisionDecoderForCausalLM,
    init_sincos_positions,
    vision_encoder_decoder,
)
from vision_rl.models.sampling import sample
from vision_rl.tasks.ocr import (
    TextProcessor,
    character_accuracy_reward,
    character_error_rate,
    character_tokenizer,
    draw,
    draw_grid,
    exact_match_reward,
)


HEIGHT, WIDTH, MAX_DIGITS = 32, 80, 4
NUM_SAMPLES = 8


@dataclass
class CompareArguments:
    output_dir: str = "runs/ocr"
    seed: int = 0
    mle_steps: int = 4000
    mle_learning_rate: float = 4e-3
    tune_steps: int = 600
    tune_learning_rate: float = 1e-4  # the best of 3e-5, 1e-4 and 3e-4 on validation, with greedy reading
    control_learning_rate: float = 4e-3  # likewise the best of 1e-3, 2e-3 and 4e-3
    num_train_images: int = 24_000
    eval_split: str = "test"
    num_eval_images: int = 1000


def digits(split: str, num_images: int) -> Dataset:
    """Images of two to four digits, some of them touching."""
    return digit_strings(
        split, num_images, min_digits=2, max_digits=MAX_DIGITS, height=HEIGHT, width=WIDTH, crowding=0.25
    )


def small_reader(vocab_size: int) -> VisionEncoderDecoderModel:
    """A ViT on columns of 4 pixels and the paper's decoder, 115,000 parameters."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    image = {"image_size": (HEIGHT, WIDTH), "patch_size": (HEIGHT, 4)}
    activation = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    encoder = ViTModel(ViTConfig(**image, **size, **activation, num_hidden_layers=2))
    text = {"vocab_size": vocab_size, "max_position_embeddings": MAX_DIGITS + 1}  # the digits and the end token
    decoder = VisionDecoderForCausalLM(VisionDecoderConfig(**text, **size, num_hidden_layers=1))
    model = vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    init_sincos_positions(model)
    return model


def main(options: CompareArguments) -> None:
    out = Path(options.output_dir)
    common = {"seed": options.seed, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    common |= {"per_device_train_batch_size": 32, "optim": "big_vision_adafactor"}  # the paper's optimiser
    processor = TextProcessor(ViTImageProcessorPil(do_resize=False), character_tokenizer("0123456789"))
    data = {"train_dataset": digits("train", options.num_train_images), "processing_class": processor}
    rewards = [exact_match_reward, character_accuracy_reward]

    def mle_config(name: str, learning_rate: float, steps: int) -> VisionMLEConfig:
        schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 200, "logging_steps": 100}
        return VisionMLEConfig(str(out / name), learning_rate=learning_rate, max_steps=steps, **schedule, **common)

    print(f"\n1/3  MLE: {options.mle_steps} steps on strings of real handwritten digits", flush=True)
    set_seed(options.seed)
    model = small_reader(processor.vocab_size)
    mle = trained(VisionMLETrainer(model, mle_config("mle", options.mle_learning_rate, options.mle_steps), **data))

    print(f"\n2/3  Reward tuning: {options.tune_steps} steps, {NUM_SAMPLES} samples an image", flush=True)
    # The rate is constant after the warm-up, as in the paper.
    config = {"learning_rate": options.tune_learning_rate, "max_steps": options.tune_steps, "warmup_steps": 10}
    config |= {"num_generations": NUM_SAMPLES, "logging_steps": 25}
    args = VisionRewardConfig(str(out / "tuned"), **config, **common)
    start = VisionEncoderDecoderModel.from_pretrained(out / "mle")
    tuned = trained(VisionRewardTrainer(start, rewards, args, **data))

    # A tuning step takes longer than an MLE step. The control takes as many MLE steps as fit into the time of tuning.
    fitting = options.mle_steps * seconds(tuned) / seconds(mle)
    steps = max(options.tune_steps, math.ceil(fitting))
    print(f"\n3/3  Control: MLE continued for as long, {steps} steps", flush=True)
    start = VisionEncoderDecoderModel.from_pretrained(out / "mle")
    control = trained(VisionMLETrainer(start, mle_config("control", options.control_learning_rate, steps), **data))

    trainers = {"mle": mle, "control": control, "tuned": tuned}
    images = digits(options.eval_split, options.num_eval_images)
    readings = {name: read(out / name, images) for name in trainers}
    table = {
        name: {
            **score(*readings[name], images["text"]),
            "steps": trainer.state.global_step,
            "seconds": round(seconds(trainer)),
        }
        for name, trainer in trainers.items()
    }
    (out / "results.json").write_text(json.dumps({"settings": vars(options), "results": table}, indent=2) + "\n")
    show(table, options)
    picture(images, readings["mle"][1], readings["tuned"][1]).save(out / "readings.png")
    print(f"\nWritten: {out}/results.json, {out}/readings.png (what was read before and after) and the three models.")


def trained(trainer: Trainer) -> Trainer:
    trainer.train()
    trainer.save_model()
    return trainer


def seconds(trainer: Trainer) -> float:
    """How long the training took, without making the data and saving the model."""
    return next(log["train_runtime"] for log in reversed(trainer.state.log_history) if "train_runtime" in log)


@torch.no_grad()
def read(folder: Path, images, num_generations: int = 4) -> tuple[list[str], list[list[str]]]:
    """What a saved model reads: greedily, and in `num_generations` samples of each image."""
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    processor = TextProcessor.from_pretrained(folder)
    torch.manual_seed(0)
    greedy, sampled = [], []
    for start in range(0, len(images), 250):
        pixel_values = processor(images=images[start : start + 250]["image"])["pixel_values"]
        greedy += processor.batch_decode(sample(model, pixel_values, do_sample=False).completion_ids[:, 0])
        drawn = sample(model, pixel_values, num_generations).completion_ids
        sampled += [processor.batch_decode(ids) for ids in drawn]
    return greedy, sampled


def score(greedy: list[str], sampled: list[list[str]], references: list[str]) -> dict[str, float]:
    """Metric and mean reward (exact match + character accuracy, at most 2) of the greedy and of the sampled readings."""

    def mean_reward(readings, references):
        rewards = zip(
            exact_match_reward(readings, references), character_accuracy_reward(readings, references), strict=True
        )
        return sum(map(sum, rewards)) / len(readings)

    flat = [reading for readings in sampled for reading in readings]
    repeated = [text for text, readings in zip(references, sampled, strict=True) for _ in readings]
    return {
        **character_error_rate(greedy, references),
        "greedy_reward": mean_reward(greedy, references),
        "sampled_reward": mean_reward(flat, repeated),
    }


def show(table: dict[str, dict], options: CompareArguments) -> None:
    print(
        f"\n{options.num_eval_images} {options.eval_split} images with digits never seen in training, seed {options.seed}\n"
    )
    print(
        f"{'':10}{'exact match':>13}{'char. errors':>14}{'reward, greedy':>16}{'sampled':>9}{'steps':>7}{'seconds':>9}"
    )
    for name, row in table.items():
        print(
            f"{name:10}{row['exact_match']:13.1%}{row['cer']:14.1%}{row['greedy_reward']:16.3f}"
            f"{row['sampled_reward']:9.3f}{row['steps']:7}{row['seconds']:9}"
        )


def picture(images, before: list[list[str]], after: list[list[str]]):
    """The first twelve images, each with three samples from before and three from after tuning."""
    return draw_grid(
        [
            draw(images[i]["image"], {"before": before[i][:3], "after": after[i][:3]}, images[i]["text"])
            for i in range(12)
        ]
    )


if __name__ == "__main__":
    main(*TrlParser((CompareArguments,)).parse_args_and_config())
