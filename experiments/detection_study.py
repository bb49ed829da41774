"""The detection experiment: what more MLE and what reward tuning make of one MLE model (docs/results.md has the tables).

    python examples/detection_study.py --situation crowded         # or incomplete; `make results` runs both

Every row starts from the same checkpoint. Learning rates are chosen on validation scenes with the first seed, the table
is of test scenes and all seeds. "Absence forbidden" has to fill all its boxes, so that decoding cannot stop early; "MLE
continued" takes more steps than tuning and more time; "with confidence loss" learns the IoU of sampled boxes on top, as
tuning for mAP does. "MLE on complete labels" tells, where labels are incomplete, what MLE reaches with all of them.

What is finished is kept in `work_dir`: an interrupted study goes on from there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pretrain_detection
import studies
import torch
import tune_detection
from datasets import Dataset
from detection_data import DataArguments, Situation, Split, situation_scenes
from detection_measures import Measured, bootstrap, measure
from studies import (
    SHORT_TRAINING,
    cost,
    differences,
    is_trained,
    record,
    summaries,
    train_and_save,
    weights_of,
    write_json,
)
from transformers import VisionEncoderDecoderModel
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor
from vision_rl.tasks.detection.rewards import ABSENT, TOKENS_PER_BOX, confidence_targets
from vision_rl.trainer.losses import token_target_weights


CHECKPOINTS = Path(__file__).parent / "checkpoints"
MLE_STEPS: dict[Situation, int] = {"crowded": 20_000, "incomplete": 12_000, "complete": 12_000}
TUNED = ("tuned_recall", "tuned_map")
TRAINED = ("mle_continued", "mle_confidence", *TUNED)  # the rows with a training of their own
NUM_RESAMPLES = 400  # of the test images, for the intervals
PATHS = ("checkpoint", "work_dir", "output")
# A step of tuning takes longer than one of MLE: the controls make so many more that they take longer in all.
STEPS_PER_TUNING_STEP = {"mle_continued": 3, "mle_confidence": 2}
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
    steps: int = 200  # of tuning, 16 images with 4 samples each
    num_train_images: int = 40_000
    num_eval_images: int = 1000
    checkpoint: str | None = None  # examples/checkpoints/detection-{situation}
    work_dir: str = "runs/results"
    output: str | None = None  # results/detection-{situation}.json
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


class Study:
    """The models of one situation, trained where they are missing, and what they reach."""

    def __init__(self, args: StudyArguments):
        self.args = args
        self._scenes: dict[Split, Dataset] = {}
        self.folder = Path(args.work_dir) / args.situation
        self.checkpoint = Path(args.checkpoint or CHECKPOINTS / f"detection-{args.situation}")
        self.processor = DetectionProcessor.from_pretrained(self.checkpoint)
        self.train_dataset = situation_scenes(args.situation, "train", args.num_train_images)
        self.rewards = {
            name: tune_detection.detection_reward(name, self.processor, self.train_dataset)
            for name in ("recall", "map")
        }

    def trained(self, row: str, learning_rate: float, seed: int) -> Path:
        """The folder of a model that this row has already, or is now trained to; see `train`."""
        folder = self.folder / f"{row}-lr{learning_rate:g}-seed{seed}"
        if not is_trained(folder, self.settings(row, learning_rate, seed)):
            self.train(row, learning_rate, seed, folder)
        return folder

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        """What decides the training of a row."""
        return {
            **(tune_detection.DEFAULTS if row in TUNED else pretrain_detection.DEFAULTS),
            "learning_rate": learning_rate,
            "optim": "adamw_torch",
            "adam_beta2": 0.95,
            "max_grad_norm": 1.0,
            "max_steps": self.args.steps * STEPS_PER_TUNING_STEP.get(row, 1),
            "seed": seed,
            **SHORT_TRAINING,
        }

    def settings(self, row: str, learning_rate: float, seed: int) -> dict:
        """All that a model of a row depends on, for `run.json`."""
        data = {"situation": self.args.situation, "num_train_images": self.args.num_train_images}
        start = {"started_from": weights_of(self.checkpoint)}
        return {"row": row, **self.config(row, learning_rate, seed), **data, **start}

    def train(self, row: str, learning_rate: float, seed: int, folder: Path) -> None:
        """Train and save; `run.json` in the folder then says with which settings, in how many steps and seconds."""
        config = {
            **self.config(row, learning_rate, seed),
            "output_dir": str(folder),
            "logging_steps": 50,
            "use_cpu": True,
            "report_to": "none",
        }
        data = {"train_dataset": self.train_dataset, "processing_class": self.processor}
        model = VisionEncoderDecoderModel.from_pretrained(self.checkpoint)
        if row in TUNED:
            reward = self.rewards[row.removeprefix("tuned_")]
            trainer = VisionRewardTrainer(model, reward, VisionRewardConfig(**config), **data)
        elif row == "mle_confidence":
            trainer = ConfidenceMLETrainer(model, VisionMLEConfig(**config), reward=self.rewards["map"], **data)
        else:
            trainer = VisionMLETrainer(model, VisionMLEConfig(**config), **data)
        train_and_save(trainer, self.settings(row, learning_rate, seed))

    def scenes(self, split: Split) -> Dataset:
        """The images that are measured, made once."""
        if split not in self._scenes:
            self._scenes[split] = situation_scenes(self.args.situation, split, self.args.num_eval_images)
        return self._scenes[split]

    def measure(self, folder: Path, split: Split, forbid_absent: bool = False) -> Measured:
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        return measure(model, self.processor, self.scenes(split), self.rewards, forbid_absent)

    def columns(self, measured: Measured, num_resamples: int = 0) -> dict[str, np.ndarray]:
        """Every column, `(1 + R,)` each: of the images, and of their resamples."""
        return bootstrap(measured, self.processor.num_labels, num_resamples)

    def test(self, folder: Path, forbid_absent: bool = False) -> dict:
        """Steps, seconds and columns of a model."""
        return {**cost(folder), "columns": self.columns(self.measure(folder, "test", forbid_absent), NUM_RESAMPLES)}

    def choose(self, row: str) -> tuple[float, dict[str, dict[str, float]]]:
        """The learning rate that does best on validation with the first seed, and what each did there.

        Best: in mAP, under the score that suits the model better; in AR when tuned for recall.
        """
        reached = {}
        for rate in self.args.learning_rates:
            columns = self.columns(self.measure(self.trained(row, rate, self.args.seeds[0]), "validation"))
            reached[rate] = {name: round(float(columns[name][0]), 4) for name in COLUMNS}

        def quality(rate: float) -> float:
            of = reached[rate]
            return of["ar_100"] if row == "tuned_recall" else max(of["map_confidence"], of["map_likelihood"])

        return max(reached, key=quality), {f"{rate:g}": values for rate, values in reached.items()}

    def rows(self) -> tuple[dict[str, list[dict]], dict[str, dict]]:
        """Columns and cost of each row, one of each seed; and what was tried and chosen for the learning rates."""
        rows = {
            "mle": [self.test(self.checkpoint)],
            "mle_forbidden": [self.test(self.checkpoint, forbid_absent=True)],
        }
        rates = {}
        for row in TRAINED:
            chosen, tried = self.choose(row)
            rates[row] = {"chosen": chosen, "validation": tried}
            rows[row] = [self.test(self.trained(row, chosen, seed)) for seed in self.args.seeds]
        if self.args.situation == "incomplete":
            complete = Path(self.args.work_dir) / "complete"
            pretrain("complete", complete)
            rows["mle_complete_labels"] = [self.test(complete)]
        return rows, rates


def pretrain(situation: Situation, folder: Path) -> None:
    """MLE from scratch where it is missing, as the checkpoints were made; goes on where it was interrupted."""
    data_args = DataArguments(situation=situation)
    config = pretrain_detection.DEFAULTS | {"max_steps": MLE_STEPS[situation]}
    settings = {**config, **asdict(data_args)}
    if is_trained(folder, settings):
        return
    interrupted = get_last_checkpoint(folder) if folder.is_dir() else None
    config |= {"output_dir": str(folder), "resume_from_checkpoint": interrupted, "use_cpu": True, "report_to": "none"}
    record(pretrain_detection.main(data_args, VisionMLEConfig(**config)), settings)


def main(args: StudyArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = Study(args)
    rows, rates = study.rows()
    columns = {row: {name: [run["columns"][name] for run in runs] for name in COLUMNS} for row, runs in rows.items()}
    results = {
        "settings": {key: value for key, value in asdict(args).items() if key not in PATHS},
        "learning_rates": rates,
        "rows": summaries(columns, rows),
        "differences": differences(columns, TUNED, ("mle", "mle_forbidden", "mle_continued", "mle_confidence")),
    }
    write_json(results, args.output or f"results/detection-{args.situation}.json")
    print(table(results), difference_table(results), sep="\n\n")
    return results


def table(results: dict, columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The rows as Markdown: means over the seeds."""
    return studies.row_table(results, {name: COLUMNS[name] for name in columns}, ROWS.__getitem__, over_seeds=np.min)


def difference_table(results: dict, columns: Sequence[str] = IN_SHORT[:3]) -> str:
    """What tuning gains over each control, with intervals of 95 %, as Markdown."""
    return studies.difference_table(results, {name: COLUMNS[name] for name in columns}, ROWS.__getitem__)


if __name__ == "__main__":
    main(*TrlParser((StudyArguments,)).parse_args_and_config())
