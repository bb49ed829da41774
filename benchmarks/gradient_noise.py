"""How noisy the gradient of detection tuning is with each estimator: baselines, prefix rewards, two confidence losses.

    python benchmarks/gradient_noise.py --situation incomplete --reward map --batches 60

Each batch is 16 fresh scenes with 4 samples each, drawn from an MLE model that comes with the repository or from
`--model`. `vision_rl/analysis/noise.py` describes how noise and signal are told apart.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from measuring import report
from transformers import VisionEncoderDecoderModel

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.analysis import gradient_noise
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor, RecallReward


EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def main(situation: str, model: str | None, reward: str, batches: int, images: int, times: int) -> list[dict]:
    sys.path.insert(0, str(EXPERIMENTS))
    from detection_scenes import situation_scenes

    folder = Path(model) if model else EXPERIMENTS / "checkpoints" / f"detection-{situation}"
    processor = DetectionProcessor.from_pretrained(folder)
    scenes = situation_scenes(situation, "train", batches * images)
    sizes, counts = (processor.num_bins, processor.num_labels), processor.count_classes(scenes)
    rewards = {
        "recall": lambda: RecallReward(*sizes),
        "map": lambda: AveragePrecisionReward(*sizes, class_counts=counts),
        "map_vocabulary": lambda: AveragePrecisionReward(*sizes, class_counts=counts, confidence_among="vocabulary"),
    }
    with tempfile.TemporaryDirectory() as nothing_is_written:
        args = VisionRewardConfig(
            nothing_is_written,
            per_device_train_batch_size=images,
            num_generations=times,
            use_cpu=True,
            report_to="none",
        )
        policy = VisionEncoderDecoderModel.from_pretrained(folder)
        trainer = VisionRewardTrainer(policy, rewards[reward](), args, scenes, processing_class=processor)
        return [
            {"reward": reward, "estimator": noise.name, **_columns(noise.summary())}
            for noise in gradient_noise(trainer, batches)
        ]


def _columns(noise: dict) -> dict:
    low, high = noise["images_needed_interval"]
    columns = ("signal", "signal_error", "noise", "images_needed")
    return {**{name: noise[name] for name in columns}, "from": low, "to": high}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--situation", default="incomplete", choices=["incomplete", "crowded"])
    parser.add_argument("--model", help="in place of the MLE model that comes along")
    parser.add_argument(
        "--reward",
        default="map",
        choices=["recall", "map", "map_vocabulary"],
        help="the last: confidences that are learned against the whole vocabulary, as released",
    )
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--times", type=int, default=4, help="samples an image")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report("gradient_noise", main(**vars(options)))
