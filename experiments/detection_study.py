"""The detection experiment: what more MLE and what reward tuning make of one MLE model (docs/results.md has the tables).

    python experiments/detection_study.py --situation crowded         # or incomplete; `make results` runs both

Every row starts from the same checkpoint. Learning rates are chosen on validation scenes with the first seed, the table
is of test scenes and all seeds. "Absence forbidden" has to fill all its boxes, so that decoding cannot stop early; "MLE
continued" takes more steps than tuning and more time; "with confidence loss" learns the IoU of sampled boxes on top, as
tuning for mAP does. "MLE on complete labels" tells, where labels are incomplete, what MLE reaches with all of them.

What is finished is kept in `work_dir`: an interrupted study goes on from there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tables
import torch
from datasets import Dataset
from detection_measures import Measured, both_rewards, measure, resampled_columns
from detection_scenes import Situation, Split, situation_scenes, unseen_scenes
from pretrain_detection import DEFAULTS as MLE_DEFAULTS
from pretrain_detection import NUM_TRAIN_IMAGES, pretrain
from runs import SHORT_TRAINING
from study import Study
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor
from vision_rl.tasks.detection.rewards import ABSENT, TOKENS_PER_BOX, confidence_targets
from vision_rl.trainer.losses import token_target_weights


CHECKPOINTS, RESULTS = (Path(__file__).parent / name for name in ("checkpoints", "results"))
UPDATES = {  # images and samples of each in a step of tuning; the steps are so many that the samples are equal in all
    "tuned_recall": (16, 4),
    "tuned_map": (16, 4),
    "tuned_map_long": (16, 4),
    "tuned_map_64": (64, 4),
    "tuned_map_256": (256, 4),
    "tuned_map_g16": (16, 16),
}
TUNED = tuple(UPDATES)
TRAINED = ("mle_continued", "mle_confidence", *TUNED)  # the rows with a training of their own
PATHS = ("checkpoint", "work_dir", "output")
# A step of tuning takes longer than one of MLE: the controls make so many more that they take longer in all.
STEPS_PER_TUNING_STEP = {"mle_continued": 1.5, "mle_confidence": 1}
NUM_COUNTED = 5000  # images whose classes are counted
NUM_CHECKPOINTS = 6  # of a training, for the curve; an interrupted one goes on from the last
ROWS = {
    "mle": "MLE",
    "mle_forbidden": "MLE, absence forbidden",
    "mle_continued": "MLE continued",
    "mle_confidence": "MLE continued, with confidence loss",
    "tuned_recall": "tuned for recall",
    "tuned_map": "tuned for mAP",
    "mle_complete_labels": "MLE on complete labels",
}
COLUMNS = {
    "map_confidence": "mAP, by confidence",
    "map_likelihood": "mAP, by likelihood",
    "ar_100": "AR@100",
    "greedy_map_reward": "mAP reward, greedy",
    "sampled_map_reward": "mAP reward, sampled",
    "greedy_recall_reward": "recall reward, greedy",
    "sampled_recall_reward": "recall reward, sampled",
    "boxes_per_image": "boxes an image",
}
IN_SHORT = ("map_confidence", "map_likelihood", "ar_100", "boxes_per_image")


@dataclass
class StudyArguments:
    situation: Situation = "crowded"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4, 3e-4, 1e-3])
    steps: int = 1000  # of tuning, 16 images with 4 samples each
    num_train_images: int = 48_000  # none of which MLE has seen, and none of which a training sees twice
    num_eval_images: int = 1000
    num_resamples: int = 400  # of the test images, for the intervals
    checkpoint: str | None = None  # experiments/checkpoints/detection-{situation}
    work_dir: str = "runs/results"
    output: str | None = None  # experiments/results/detection-{situation}.json
    threads: int = 1


class ConfidenceMLETrainer(VisionMLETrainer):
    """MLE whose confidences are not drawn but learned: of one sampled answer an image, as when mAP is tuned for."""

    def __init__(self, *args, reward: AveragePrecisionReward, **kwargs):
        super().__init__(*args, **kwargs)
        self.reward = reward

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]  # (B, T)
        drawn = torch.zeros_like(labels, dtype=torch.bool)
        drawn[:, TOKENS_PER_BOX - 1 :: TOKENS_PER_BOX] = labels[:, TOKENS_PER_BOX - 1 :: TOKENS_PER_BOX] > ABSENT
        loss = super().compute_loss(model, {**inputs, "label_weights": (~drawn).float()}, num_items_in_batch=None)
        completions = self.complete(inputs)
        ids = completions.completion_ids[:, 0]
        scored = self.reward.score(ids, inputs["columns"].references)
        targets = confidence_targets(scored.match_iou[:, 0], scored.present[:, 0], among=self.reward.confidence_among)
        _, outputs = super().compute_loss(model, {**inputs, "labels": ids}, return_outputs=True)
        confidence_loss, _ = weigh_logits(outputs.logits.float(), token_target_weights(targets, 1 / len(ids)))
        return loss + self.reward.confidence_weight * confidence_loss


class DetectionStudy(Study):
    """The models of one situation, and what they reach."""

    def __init__(self, args: StudyArguments):
        super().__init__(Path(args.work_dir) / args.situation, args.seeds)
        self.args = args
        self.checkpoint = Path(args.checkpoint or CHECKPOINTS / f"detection-{args.situation}")
        self.processor = DetectionProcessor.from_pretrained(self.checkpoint)
        self.train_dataset = unseen_scenes(args.situation, NUM_TRAIN_IMAGES, args.num_train_images)
        counted = situation_scenes(args.situation, "train", min(NUM_COUNTED, args.num_train_images))
        self.rewards = both_rewards(self.processor, counted)
        self._scenes: dict[Split, Dataset] = {}

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        if row in UPDATES:
            images, generations = UPDATES[row]
            at_once = min(images, 64)
            steps = round(self.args.steps * 16 * 4 / (images * generations)) * (3 if row == "tuned_map_long" else 1)
            batch = {"per_device_train_batch_size": at_once, "num_generations": generations}
            batch["gradient_accumulation_steps"] = images // at_once
        else:
            batch, steps = MLE_DEFAULTS, round(self.args.steps * STEPS_PER_TUNING_STEP[row])
        return {
            **batch,
            "learning_rate": learning_rate,
            "optim": "adamw_torch",
            "adam_beta2": 0.95,
            "max_grad_norm": 1.0,
            "max_steps": steps,
            "seed": seed,
            **SHORT_TRAINING,
            "save_strategy": "steps",
            "save_steps": math.ceil(steps / NUM_CHECKPOINTS),
            "save_total_limit": None,
        }

    def start(self, row: str, seed: int) -> Path:
        return self.checkpoint

    def other_settings(self) -> dict:
        images = [NUM_TRAIN_IMAGES, NUM_TRAIN_IMAGES + self.args.num_train_images]
        return {"situation": self.args.situation, "train_images": images}

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        data = {"train_dataset": self.train_dataset, "processing_class": self.processor}
        model = VisionEncoderDecoderModel.from_pretrained(start)
        if row in TUNED:
            reward = self.rewards["recall" if row == "tuned_recall" else "map"]
            return VisionRewardTrainer(model, reward, VisionRewardConfig(**config), **data)
        if row == "mle_confidence":
            return ConfidenceMLETrainer(model, VisionMLEConfig(**config), reward=self.rewards["map"], **data)
        return VisionMLETrainer(model, VisionMLEConfig(**config), **data)

    def scenes(self, split: Split) -> Dataset:
        """The images that are measured, made once."""
        if split not in self._scenes:
            self._scenes[split] = situation_scenes(self.args.situation, split, self.args.num_eval_images)
        return self._scenes[split]

    def measure(
        self, folder: Path, split: Split, forbid_absent: bool = False
    ) -> tuple[dict[str, np.ndarray], Measured]:
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        measured = measure(model, self.processor, self.scenes(split), self.rewards, forbid_absent)
        num_resamples = self.args.num_resamples if split == "test" else 0
        columns = resampled_columns(measured, self.processor.num_labels, num_resamples)
        return {name: columns[name] for name in COLUMNS}, measured

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        """mAP under the score that suits the model better; AR where it is tuned for recall."""
        chosen_by = ("ar_100",) if row == "tuned_recall" else ("map_confidence", "map_likelihood")
        return max(float(columns[name][0]) for name in chosen_by)


def main(args: StudyArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = DetectionStudy(args)
    rates = {}
    study.test("mle", [study.checkpoint])
    study.test("mle_forbidden", [study.checkpoint], forbid_absent=True)
    for row in TRAINED:
        chosen, rates[row] = study.choose(row, args.learning_rates)
        study.test(row, [study.trained(row, chosen, seed) for seed in args.seeds])
    if args.situation == "incomplete":
        complete = Path(args.work_dir) / "complete"
        pretrain("complete", complete)
        study.test("mle_complete_labels", [complete])
    results = {
        "settings": {key: value for key, value in asdict(args).items() if key not in PATHS},
        "learning_rates": rates,
        **study.results(TUNED, ("mle", "mle_forbidden", "mle_continued", "mle_confidence")),
    }
    tables.write_json(results, args.output or RESULTS / f"detection-{args.situation}.json")
    print(table(results), difference_table(results), sep="\n\n")
    return results


def table(results: dict, columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The rows as Markdown: means over the seeds."""
    return tables.row_table(results, {name: COLUMNS[name] for name in columns}, ROWS.__getitem__, over_seeds=np.min)


def difference_table(results: dict, columns: Sequence[str] = IN_SHORT[:3]) -> str:
    """What tuning gains over each control, with intervals of 95 %, as Markdown."""
    return tables.difference_table(results, {name: COLUMNS[name] for name in columns}, ROWS.__getitem__)


if __name__ == "__main__":
    main(*TrlParser((StudyArguments,)).parse_args_and_config())
