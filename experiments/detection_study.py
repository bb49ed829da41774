"""The detection experiment: what more MLE and what reward tuning make of one MLE model (docs/results.md has the tables).

    python experiments/detection_study.py --situation incomplete         # or hard, or crowded

Every row starts from the same checkpoint, and every model is decoded in three ways: greedily, with the stop threshold that
is best on validation (`DetectionProcessor(stop_threshold=...)`), and with absence forbidden. Learning rates, thresholds
and scores are chosen on validation scenes with the first seed, the table is of test scenes and all seeds. "MLE continued"
takes more steps than tuning and more time; "with confidence loss" learns the IoU of sampled boxes on top, as tuning for
mAP does.

What is finished is kept in `work_dir`: an interrupted study goes on from there.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tables
import torch
from bootstrap import differences
from datasets import Dataset
from detection_measures import Measured, make_rewards, measure, resampled_columns, stopping
from detection_scenes import Situation, situation_scenes, unseen_scenes
from pretrain_detection import DEFAULTS as MLE_DEFAULTS
from pretrain_detection import num_seen
from runs import SHORT_TRAINING, commit, cost, weights_of
from study import Study
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.analysis import charts, gradient_noise, noise
from vision_rl.data.digit_scenes import with_missing_boxes
from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.rewards import RewardOutput
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor
from vision_rl.tasks.detection.processing import SCORES
from vision_rl.tasks.detection.rewards import ABSENT, TOKENS_PER_BOX, confidence_targets
from vision_rl.trainer.checkpoints import checkpoints_in
from vision_rl.trainer.losses import token_target_weights


CHECKPOINTS, RESULTS = (Path(__file__).parent / name for name in ("checkpoints", "results"))
PATHS = ("checkpoint", "work_dir", "output")
NUM_COUNTED = 5000  # images whose classes are counted
NUM_CHECKPOINTS = 6  # of a training, for the curve; an interrupted one goes on from the last


@dataclass(frozen=True)
class Row:
    """A model with a training of its own, which starts from the checkpoint.

    Args:
        title: in the tables.
        learning_rates: the best of them on validation is taken.
        reward: what it is tuned for, of `make_rewards` or `reward_variants`.
        images, generations: of a step of tuning; the steps are so many that all tuned models see as many samples.
        length: times as many steps. A step of MLE takes less time than one of tuning: MLE makes more, and takes longer.
        all_seeds: otherwise the first only.
    """

    title: str
    learning_rates: tuple[float, ...]
    reward: str = "map"
    images: int = 16
    generations: int = 4
    length: float = 1.0
    all_seeds: bool = True


TUNED = {
    "tuned_map": Row("tuned for mAP", (3e-5, 1e-4)),
    "tuned_map_64": Row("tuned for mAP, 64 images a step", (2e-4,), images=64, all_seeds=False),
    "tuned_map_256": Row("tuned for mAP, 256 images a step", (4e-4,), images=256, all_seeds=False),
    "tuned_map_g16": Row("tuned for mAP, 16 samples an image", (2e-4,), generations=16, all_seeds=False),
    "tuned_map_no_confidence": Row("tuned for mAP, no confidence loss", (1e-4,), reward="map, no confidence loss"),
    "tuned_map_released": Row("tuned for mAP, confidence loss as released", (1e-4,), reward="map, released loss"),
    "tuned_map_whole": Row("tuned for mAP, no prefix rewards", (1e-4,), reward="map, whole samples"),
    "tuned_recall": Row("tuned for recall", (1e-4,), reward="recall"),
    "tuned_f1": Row("tuned for F1", (1e-4,), reward="f1"),
    "tuned_f1_64": Row("tuned for F1, 64 images a step", (2e-4,), reward="f1", images=64, all_seeds=False),
    "tuned_f1_256": Row("tuned for F1, 256 images a step", (4e-4,), reward="f1", images=256, all_seeds=False),
}
MLE = {
    "mle_continued": Row("MLE continued", (3e-4, 1e-3), length=1.5, all_seeds=False),
    "mle_confidence": Row("MLE continued, with confidence loss", (1e-4,), all_seeds=False),
}
TRAINED = MLE | TUNED
TITLES = {
    "mle": "MLE",
    **{name: row.title for name, row in TRAINED.items()},
    "mle_complete_labels": "MLE on complete labels",
}
COLUMNS = {
    "map_confidence": "mAP, by confidence",
    "map_likelihood": "mAP, by likelihood",
    "map_class": "mAP, by class",
    "ar_100": "AR@100",
    "f1": "F1",
    "greedy_map_reward": "mAP reward, greedy",
    "sampled_map_reward": "mAP reward, sampled",
    "greedy_recall_reward": "recall reward, greedy",
    "sampled_recall_reward": "recall reward, sampled",
    "greedy_f1_reward": "F1 reward, greedy",
    "sampled_f1_reward": "F1 reward, sampled",
    "boxes_per_image": "boxes an image",
}
COMPARED = {"map": "mAP, by the best score", "map_confidence": "mAP, by confidence"} | {
    name: COLUMNS[name] for name in ("map_likelihood", "ar_100", "f1")
}
ON_CURVE = {
    "sampled_map_reward": "mAP reward, sampled",
    "greedy_map_reward": "greedy",
    "map": "mAP, by the best score",
    "map_with_threshold": "the same, absent only above 0.95",
    "ar_100": "AR@100",
    "f1": "F1",
    "boxes_per_image": "boxes an image",
}
CURVE_THRESHOLD = 0.95


@dataclass
class StudyArguments:
    situation: Situation = "crowded"
    rows: list[str] = field(
        default_factory=lambda: ["mle_continued", "tuned_map", "tuned_map_64", "tuned_map_256", "tuned_map_g16"]
    )  # of TRAINED
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    learning_rates: list[float] | None = None  # of every row; None: each its own
    stop_thresholds: list[float] = field(default_factory=lambda: [0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0])
    steps: int = 3000  # of tuning, 16 images with 4 samples each
    num_train_images: int = 144_000  # none of which MLE has seen, and none of which a training sees twice
    num_validation_images: int = 500
    num_eval_images: int = 1000
    num_resamples: int = 400  # of the test images, for the intervals
    num_noise_batches: int = 40  # of 16 images with 4 samples each
    checkpoint: str | None = None  # experiments/checkpoints/detection-{situation}
    work_dir: str = "runs/results"
    output: str | None = None  # experiments/results/detection-{situation}.json
    threads: int = 1


def reward_variants(reward: AveragePrecisionReward) -> dict[str, Callable]:
    """The reward for mAP without its confidence loss, with the released one, and without prefix rewards."""
    without, released = copy.copy(reward), copy.copy(reward)
    without.confidence_weight = 0.0
    released.confidence_among = "vocabulary"

    def of_whole_samples(completion_ids, references, log_metric=None, **kwargs) -> RewardOutput:
        return replace(reward(completion_ids, references, log_metric), prefix_rewards=None)

    return {
        "map, no confidence loss": without,
        "map, released loss": released,
        "map, whole samples": of_whole_samples,
    }


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
        self.train_dataset = unseen_scenes(args.situation, num_seen(args.situation), args.num_train_images)
        counted = situation_scenes(args.situation, "train", min(NUM_COUNTED, args.num_train_images))
        self.rewards = make_rewards(self.processor, counted)
        self.variants = reward_variants(self.rewards["map"])
        self.scores: dict[str, str] = {}  # by which each tested row is best on validation
        self._scenes: dict[str, Dataset] = {}

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        about = TRAINED[row]
        steps, batch = self.args.steps, MLE_DEFAULTS
        if row in TUNED:
            at_once = min(about.images, 64)
            batch = {"per_device_train_batch_size": at_once, "num_generations": about.generations}
            batch |= {"gradient_accumulation_steps": about.images // at_once}
            steps = max(1, round(steps * 16 * 4 / (about.images * about.generations)))
        steps = round(steps * about.length)
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
        seen = num_seen(self.args.situation)
        images = [seen, seen + self.args.num_train_images]
        return {"situation": self.args.situation, "train_images": images}

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        data = {"train_dataset": self.train_dataset, "processing_class": self.processor}
        model = VisionEncoderDecoderModel.from_pretrained(start)
        if row in TUNED:
            return VisionRewardTrainer(
                model, (self.rewards | self.variants)[TUNED[row].reward], VisionRewardConfig(**config), **data
            )
        if row == "mle_confidence":
            return ConfidenceMLETrainer(model, VisionMLEConfig(**config), reward=self.rewards["map"], **data)
        return VisionMLETrainer(model, VisionMLEConfig(**config), **data)

    def scenes(self, split: str) -> Dataset:
        """The images that are measured, made once; `"validation, incomplete"` with half of their boxes missing."""
        if split not in self._scenes:
            name, _, incomplete = split.partition(", ")
            count = self.args.num_eval_images if name == "test" else self.args.num_validation_images
            scenes = situation_scenes(self.args.situation, name, count)  # type: ignore[arg-type]
            self._scenes[split] = with_missing_boxes(scenes, 0.5) if incomplete else scenes
        return self._scenes[split]

    def measure(self, folder: Path, split: str, stop_threshold: float = 0.0) -> tuple[dict[str, np.ndarray], Measured]:
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        generations = 0 if stop_threshold else 4
        measured = measure(model, self.processor, self.scenes(split), self.rewards, stop_threshold, generations)
        return resampled_columns(measured, self.processor.num_labels, self.resamples(split)), measured

    def resamples(self, split: str) -> int:
        return self.args.num_resamples if split == "test" else 0

    def columns_of(self, folder: Path, split: str, stop_threshold: float = 0.0) -> dict[str, np.ndarray]:
        """What `measure` says, kept beside the models, by their weights."""
        what = [weights_of(folder), split.replace(", ", "-"), len(self.scenes(split)), self.resamples(split)]
        file = self.folder / "measured" / f"{'-'.join(map(str, what))}-{stop_threshold:g}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            columns, _ = self.measure(folder, split, stop_threshold)
            np.savez(file.with_suffix(".part.npz"), **columns)
            file.with_suffix(".part.npz").rename(file)
        return dict(np.load(file))

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        """What it is tuned for: AR, F1, else mAP under the score that suits the model best."""
        return {"recall": float(columns["ar_100"][0]), "f1": float(columns["f1"][0])}.get(
            TRAINED[row].reward, max(map_by_score(columns).values())
        )

    def swept(self, folder: Path, split: str = "validation") -> dict[float, dict[str, np.ndarray]]:
        """The columns at every threshold."""
        return {threshold: self.columns_of(folder, split, threshold) for threshold in self.args.stop_thresholds}

    def choose(self, row: str, learning_rates: Sequence[float]) -> tuple[float, dict]:
        """The rate whose model is best on validation, of the first seed: for mAP at its best threshold, else greedily."""
        swept = {rate: self.swept(self.trained(row, rate, self.seeds[0])) for rate in learning_rates}
        reached = {
            rate: max(
                self.quality(row, columns) for t, columns in by_t.items() if t == 0 or TRAINED[row].reward == "map"
            )
            for rate, by_t in swept.items()
        }
        chosen = max(reached, key=reached.__getitem__)
        return chosen, {
            "chosen": chosen,
            "validation": {f"{rate:g}": round(best, 4) for rate, best in reached.items()},
        }

    def choose_threshold(self, row: str, folder: Path, split: str = "validation") -> tuple[float, dict]:
        """The threshold above 0 that is best on validation, by mAP under any score, and what each reaches."""
        swept = self.swept(folder, split)
        chosen = max((t for t in swept if 0 < t < 1), key=lambda t: max(map_by_score(swept[t]).values()))
        reached = {
            f"{t:g}": {name: round(float(values[0]), 4) for name, values in columns.items()}
            for t, columns in swept.items()
        }
        return chosen, {"chosen": chosen, split: reached}

    def test_decoded(self, row: str, folders: Sequence[Path], stop_threshold: float) -> str:
        """Measure the models of a row on the test images; `map` is by the score that was best on validation."""
        name = f"{row}@{stop_threshold:g}" if stop_threshold else row
        by_score = map_by_score(self.columns_of(folders[0], "validation", stop_threshold))
        self.scores[name] = max(by_score, key=by_score.__getitem__)
        measured = [self.columns_of(folder, "test", stop_threshold) for folder in folders]
        measured = [{"map": columns[f"map_{self.scores[name]}"], **columns} for columns in measured]
        self.columns[name] = {column: [columns[column] for columns in measured] for column in measured[0]}
        self.costs[name] = [cost(folder) for folder in folders]
        return name

    def curve(self, row: str, learning_rate: float) -> list[dict[str, float]]:
        """What the first seed's model was on validation after so many steps, decoded greedily, and how noisy its gradients."""
        seed = self.seeds[0]
        folder = self.trained(row, learning_rate, seed)
        steps = {0: self.start(row, seed)} | {int(saved.name.split("-")[1]): saved for saved in checkpoints_in(folder)}
        steps[cost(folder)["steps"]] = folder
        points = []
        for step, saved in sorted(steps.items()):
            columns = self.columns_of(saved, "validation")
            numbers = {name: float(columns[name][0]) for name in ON_CURVE if name in columns}
            numbers["map"] = max(map_by_score(columns).values())
            with_threshold = self.columns_of(saved, "validation", CURVE_THRESHOLD)
            numbers["map_with_threshold"] = max(map_by_score(with_threshold).values())
            point = {"step": step, **{name: round(numbers[name], 4) for name in ON_CURVE if name in numbers}}
            if row == "tuned_map":
                point |= self.images_needed(row, learning_rate, saved)
            points.append(point)
        return points

    def images_needed(self, row: str, learning_rate: float, folder: Path) -> dict:
        """The number of images whose mean gradient is as large as its noise, and the interval; kept, by the weights.

        Without the confidence loss, whose gradient is several times as long at the start, and hardly noisy.
        """
        file = self.folder / "measured" / f"{weights_of(folder)}-{row}-noise.json"
        if not file.exists():
            config = self.config(row, learning_rate, self.seeds[0])
            config |= {"output_dir": str(self.folder / "noise"), "use_cpu": True, "report_to": "none"}
            estimators = gradient_noise(self.make_trainer(row, config, folder), self.args.num_noise_batches)
            tables.write_json({each.name: each.summary() for each in estimators}, file)
        kept = tables.read_json(file)["leave_one_out, prefix rewards"]
        return {name: kept[name] for name in ("images_needed", "images_needed_interval")}

    def stopping(self, folder: Path) -> dict[str, float]:
        """Whether a model knows when to stop, on validation images; see `detection_measures.stopping`."""
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        return stopping(model, self.processor, self.scenes("validation"))


def map_by_score(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {score: float(columns[f"map_{score}"][0]) for score in SCORES}


def main(args: StudyArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = DetectionStudy(args)
    rates, thresholds, curves = {}, {}, {}
    models: dict[str, list[Path]] = {"mle": [study.checkpoint]}
    for row in args.rows:
        chosen, rates[row] = study.choose(row, args.learning_rates or TRAINED[row].learning_rates)
        seeds = args.seeds if TRAINED[row].all_seeds else args.seeds[:1]
        models[row] = [study.trained(row, chosen, seed) for seed in seeds]
        curves[row] = study.curve(row, chosen)
    for row, folders in models.items():
        best, thresholds[row] = study.choose_threshold(row, folders[0])
        for threshold in (0.0, best, 1.0):
            study.test_decoded(row, folders, threshold)
    if args.situation == "incomplete":
        _, thresholds["mle, by incomplete labels"] = study.choose_threshold(
            "mle", study.checkpoint, "validation, incomplete"
        )
    tested = list(study.columns)
    controls = [name for name in tested if name.split("@")[0] in ("mle", *MLE)]
    variants = [name for name in tested if name in TUNED and name != "tuned_map"]
    results = {
        "settings": {key: value for key, value in asdict(args).items() if key not in PATHS},
        "commit": commit(),
        "learning_rates": rates,
        "thresholds": thresholds,
        "stopping": {row: study.stopping(folders[0]) for row, folders in models.items()},
        "scores": study.scores,
        **study.results([name for name in tested if name not in controls and not name.endswith("@1")], controls),
        "over_tuned_map": differences(study.columns, variants, ["tuned_map"]) if "tuned_map" in tested else {},
        "curves": curves,
    }
    tables.write_json(results, args.output or RESULTS / f"detection-{args.situation}.json")
    print(table(results), difference_table(results), sep="\n\n")
    return results


def title(row: str) -> str:
    """Name a row and how it is decoded: `tuned_map@0.9` leaves a box out only where P(absent) is above 0.9."""
    name, _, threshold = row.partition("@")
    how = {"": "", "1": ", absence forbidden"}.get(threshold, f", absent only above {threshold}")
    return TITLES[name] + how


def table(results: dict) -> str:
    """The rows as Markdown: means over the seeds."""
    measured = {name for values in results["rows"].values() for name in values}
    shown = {name: column for name, column in COLUMNS.items() if name in measured}
    return tables.row_table(results, shown, title)


def difference_table(results: dict) -> str:
    """What greedily decoded tuned models gain over each control, with intervals of 95 %, as Markdown.

    Absence forbidden is a control where no threshold was measured, which is better.
    """
    pairs = {pair: tuple(pair.split(" - ")) for pair in results["differences"]}
    thresholded = {control.split("@")[0] for _, control in pairs.values() if "@0" in control}
    kept = [
        pair
        for pair, (tuned, control) in pairs.items()
        if "@" not in tuned and not (control.endswith("@1") and control.split("@")[0] in thresholded)
    ]
    differences = {pair: results["differences"][pair] for pair in kept}
    shown = {
        name: column for name, column in COMPARED.items() if all(name in values for values in differences.values())
    }
    return tables.difference_table({"differences": differences}, shown, title)


def variant_table(results: dict) -> str:
    """The models tuned for mAP and for its variants, greedy, and what each gains over the first, as Markdown."""
    shown = ("map", "map_confidence", "ar_100", "f1", "sampled_map_reward", "boxes_per_image")
    rows = []
    for row, values in results["rows"].items():
        if row == "mle" or row in TUNED:
            gain = results["over_tuned_map"].get(f"{row} - tuned_map")
            gains = [tables.with_interval(gain[name], ".3f") if gain else "" for name in ("map", "f1")]
            rows.append([TITLES[row], *(f"{values[name]['mean']:.3f}" for name in shown), *gains])
    titles = [(COMPARED | COLUMNS)[name] for name in shown]
    return tables.markdown(["", *titles, "mAP, over the first tuned", "F1, over the first tuned"], rows)


def threshold_table(results: dict) -> str:
    """mAP by the best score, recall and boxes of each model at each threshold on validation, as Markdown."""
    rows = []
    for row, about in results["thresholds"].items():
        reached = next(value for name, value in about.items() if name != "chosen")
        label = TITLES.get(row, "MLE, measured with incomplete labels")
        cells = [
            f"{max(at[f'map_{score}'] for score in SCORES):.3f} / {at['ar_100']:.3f} / {at['boxes_per_image']:.1f}"
            for at in reached.values()
        ]
        rows.append([label, *cells])
    return tables.markdown(["mAP / AR@100 / boxes", *reached], rows)


def stopping_table(results: dict) -> str:
    """P(absent) where a box is still to be found and where none is, and how well it tells them apart, as Markdown."""
    rows = [
        [TITLES[row], *(f"{value:.3f}" for value in values.values())] for row, values in results["stopping"].items()
    ]
    return tables.markdown(["mean P(absent)", "a box is left", "none is left", "AUC"], rows)


def curve_table(results: dict) -> str:
    """What each model was on validation after so many steps, as Markdown."""
    rows = [
        [TITLES[row], str(point["step"]), *(f"{point[name]:.3f}" for name in ON_CURVE), needed(point)]
        for row, points in results["curves"].items()
        for point in points
    ]
    return tables.markdown(["", "steps", *ON_CURVE.values(), "images needed"], rows)


def curve_charts(results: dict) -> dict[str, str]:
    """Figure 6 as SVG: the reward and the metric on validation over the steps of tuning for mAP, and of MLE continued."""
    drawn = {}
    for what, title, greedy, other, how in (
        ("reward", "mAP reward", "greedy_map_reward", "sampled_map_reward", "a sample"),
        ("metric", "mAP by the best score", "map", "map_with_threshold", f"absent only above {CURVE_THRESHOLD}"),
    ):
        lines = []
        for colour, row in enumerate(("tuned_map", "mle_continued")):
            points = results["curves"][row]
            steps = [point["step"] for point in points]
            lines.append(charts.Line(TITLES[row], steps, [point[greedy] for point in points], colour=colour))
            lines.append(charts.Line("", steps, [point[other] for point in points], colour=colour, dashed=True))
        drawn[what] = charts.line_chart(f"{title} on validation", lines, f"steps (greedy answers; dashed: {how})")
    return drawn


def needed(point: dict) -> str:
    """The images whose mean gradient is as large as its noise, and their interval, where they were measured."""
    if "images_needed" not in point:
        return ""
    low, high = map(noise.images_text, point["images_needed_interval"])
    return f"{noise.images_text(point['images_needed'])} ({low} to {high})"


if __name__ == "__main__":
    main(*TrlParser((StudyArguments,)).parse_args_and_config())
