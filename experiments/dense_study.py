"""The experiments with codes: what more MLE and what tuning make of a model of panoptic maps, or of colours.

    python examples/dense_study.py --stage1 runs/panoptic-stage1
    python examples/dense_study.py --task colorization --stage1 runs/colorization-stage1 --images_dir photos

Made for two CPU cores. All start from MLE models, each the best on validation of its training: one, or one a seed. "MLE
continued" takes longer than tuning does. The learning rates of both are chosen on validation with the first seed; tuning is
shown with all its rates. "Stage I" is what is read back of the true codes: the ceiling. What is finished is kept in
`work_dir`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pretrain_colorization
import pretrain_panoptic
import studies
import torch
import tune_colorization
import tune_panoptic
from dense_data import DataArguments, colorization_data, panoptic_data
from PIL import Image
from studies import (
    SHORT_TRAINING,
    best_rate,
    cost,
    differences,
    is_trained,
    joined,
    resampled_weights,
    summaries,
    train_and_save,
    weights_of,
    write_json,
)
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.sampling import sample
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks import colorization, panoptic


NUM_RESAMPLES = 1000  # of the test images, for the intervals
NUM_SAMPLES = 4
NUM_DRAWN = 6  # test images of the picture
PATHS = ("stage1", "encoder", "images_dir", "masks_dir", "annotation_file", "work_dir", "output", "picture")


class Task(NamedTuple):
    """What differs between the two; `columns(predictions, references, weights, processor)` gives `(1 + R,)` each."""

    data: Callable
    processor: type
    reward: Callable
    metrics: Callable[..., Callable]  # of the processor
    columns: Callable[..., dict[str, np.ndarray]]
    names: dict[str, str]  # of the columns
    chosen_by: str  # the column that chooses learning rates
    mle_defaults: dict
    tune_defaults: dict


def panoptic_columns(predictions: list, references: list, weights: np.ndarray, processor) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ of the images and of their resamples, from each image's share in each category's sums."""
    ids = np.array(sorted(category["id"] for category in processor.categories))
    things = {category["id"] for category in processor.categories if category["isthing"]}
    totals = np.zeros((len(references), 4, len(ids)))  # IoU, true positives, false positives, false negatives
    for image, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        found = panoptic.match_segments(panoptic.resized(prediction, np.shape(reference[0])), reference)
        predicted, true = (np.searchsorted(ids, of) for of in (found.predicted_categories, found.true_categories))
        matched = predicted[found.matched[:, 0]]
        np.add.at(totals[image, 0], matched, found.ious)
        for row, places in enumerate((matched, predicted[found.spurious], true[found.missed]), start=1):
            np.add.at(totals[image, row], places, 1)
    iou, tp, fp, fn = np.tensordot(weights, totals, 1).swapaxes(0, 1)  # (1 + R, C) each
    occurs = tp + fp + fn > 0
    count, isthing = np.maximum(tp + 0.5 * fp + 0.5 * fn, 0.5), np.isin(ids, list(things))

    def mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return (values * chosen).sum(1) / np.maximum(chosen.sum(1), 1)

    return {
        "pq": mean(iou / count, occurs),
        "sq": mean(iou / np.maximum(tp, 1), occurs),
        "rq": mean(tp / count, occurs),
        "pq_things": mean(iou / count, occurs & isthing),
        "pq_stuff": mean(iou / count, occurs & ~isthing),
    }


def colorization_columns(predictions: list, references: list, weights: np.ndarray, _) -> dict[str, np.ndarray]:
    """Means of the images, and of their resamples."""
    metrics = colorization.colorization_metrics(predictions, references)
    names = ("vivid_fraction", "hue_entropy", "colorfulness", "hasler_colorfulness", "psnr")
    return {name: weights @ np.array(metrics[f"per_image_{name}"]) / len(references) for name in names}


TASKS = {
    "panoptic": Task(
        panoptic_data,
        panoptic.PanopticProcessor,
        panoptic.PanopticReward(),
        lambda processor: panoptic.PanopticQuality(processor.categories),
        panoptic_columns,
        {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"},
        "pq",
        pretrain_panoptic.DEFAULTS,
        tune_panoptic.DEFAULTS,
    ),
    "colorization": Task(
        colorization_data,
        colorization.ColorizationProcessor,
        colorization.ColorfulnessReward(),
        lambda processor: colorization.colorization_metrics,
        colorization_columns,
        {
            "vivid_fraction": "vivid share",
            "hue_entropy": "hue entropy",
            "colorfulness": "colourfulness",
            "hasler_colorfulness": "Hasler-Süsstrunk",
            "psnr": "PSNR",
        },
        "colorfulness",
        pretrain_colorization.DEFAULTS,
        {**tune_colorization.DEFAULTS, "reward_weights": None},
    ),
}
ROWS = {"stage1": "stage I", "mle": "MLE", "mle_continued": "MLE continued", "tuned": "tuned"}
REWARDS = {"greedy_reward": "reward, greedy", "sampled_reward": "reward, sampled"}


@dataclass
class StudyArguments:
    task: Literal["panoptic", "colorization"] = "panoptic"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    mle_seeds: list[int] = field(default_factory=lambda: [0])  # a run starts from the MLE model at its place, in turn
    mle_steps: int = 8000
    mle_learning_rate: float = 1e-3
    mle_batch_size: int = 32  # of MLE; MLE continued has 32
    steps: int = 300  # of tuning
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    control_steps: int = 1500
    control_learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4, 3e-4])
    work_dir: str = "runs/dense-study"
    output: str | None = None  # results/{task}.json
    picture: str | None = None  # docs/images/{task}.png
    threads: int = 1


class Study:
    """The models of the experiment, trained where they are missing, and what they reach."""

    def __init__(self, args: StudyArguments, model_args: pretrain_panoptic.ModelArguments, data_args: DataArguments):
        self.args, self.model_args, self.data_args = args, model_args, data_args
        self.task = TASKS[args.task]
        self.stage1 = UViMModel.from_pretrained(model_args.stage1).eval()
        self.processor = self.task.processor.from_pretrained(model_args.stage1)
        self.decoder = UViMDecoder(self.stage1, self.processor)
        self.rows = dict(zip(("train", "validation", "test"), self.task.data(data_args), strict=True))

    def trained(self, row: str, learning_rate: float, seed: int) -> Path:
        """The folder of a model that is there already, or is now trained; `run.json` in it says how."""
        folder = Path(self.args.work_dir) / self.args.task / f"{row}-lr{learning_rate:g}-seed{seed}"
        config = {
            **(self.task.tune_defaults if row == "tuned" else self.task.mle_defaults),
            "learning_rate": learning_rate,
            "max_grad_norm": 1.0,
            "seed": seed,
        }
        if row == "mle":
            steps = self.args.mle_steps
            config |= {"max_steps": steps, "eval_steps": steps // 16, "save_steps": steps // 16}
            config["per_device_train_batch_size"] = self.args.mle_batch_size
        else:
            steps = self.args.steps if row == "tuned" else self.args.control_steps
            config |= SHORT_TRAINING | {"max_steps": steps}
        start = None if row == "mle" else self.mle(seed)
        settings = {
            "row": row,
            **config,
            **{f"model.{name}": value for name, value in asdict(self.model_args).items()},
            **{f"data.{name}": value for name, value in asdict(self.data_args).items()},
            "stage1_weights": weights_of(Path(self.model_args.stage1)),
            "started_from": None if start is None else weights_of(start),
        }
        if not is_trained(folder, settings):
            self.train(row, config, start, folder, settings)
        return folder

    def train(self, row: str, config: dict, start: Path | None, folder: Path, settings: dict) -> None:
        """Train, from the model in the folder `start` or a new one, and save."""
        config |= {"output_dir": str(folder), "save_only_model": True, "logging_steps": 50}
        config |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
        data = {
            "train_dataset": self.rows["train"],
            "eval_dataset": self.rows["validation"],
            "processing_class": self.processor,
            "compute_metrics": self.task.metrics(self.processor),
            "completion_decoder": self.decoder,
        }
        trainer: VisionMLETrainer | VisionRewardTrainer
        if start is None:
            torch.manual_seed(config["seed"])
            model = pretrain_panoptic.code_writer(self.model_args, self.stage1)
        else:
            model = VisionEncoderDecoderModel.from_pretrained(start)
        if row == "tuned":
            trainer = VisionRewardTrainer(model, self.task.reward, VisionRewardConfig(**config), **data)
        else:
            trainer = VisionMLETrainer(model, VisionMLEConfig(**config), **data)
        train_and_save(trainer, settings)

    def mle(self, seed: int) -> Path:
        """The folder of what the run of this seed starts from."""
        of_mle = self.args.mle_seeds[self.args.seeds.index(seed) % len(self.args.mle_seeds)]
        return self.trained("mle", self.args.mle_learning_rate, of_mle)

    @torch.no_grad()
    def measure(self, folder: Path | None, split: str) -> tuple[dict[str, np.ndarray], list]:
        """The columns, `(1 + R,)` each, and the predictions; of stage I alone without a folder."""
        rows = self.rows[split]
        model = None if folder is None else VisionEncoderDecoderModel.from_pretrained(folder)
        torch.manual_seed(0)
        predictions, references, rewards = [], [], {name: [] for name in REWARDS}
        for start in range(0, len(rows), 32):
            batch = [rows[row] for row in range(start, min(start + 32, len(rows)))]
            images = [row["image"].convert("RGB") for row in batch]
            truth = self.processor.get_references(
                [{**row, "image": image} for row, image in zip(batch, images, strict=True)]
            )
            references += truth
            if model is None:
                columns = {name: [row[name] for row in batch] for name in self.processor.target_columns}
                inputs = self.processor.dense(images=images, **columns)
                codes = self.decoder.labels(inputs)[:, None]  # (B, 1, L)
                predictions += self.decoder(codes, inputs)
                continue
            inputs = self.processor(images=images)
            for name, count in (("greedy_reward", 1), ("sampled_reward", NUM_SAMPLES)):
                completions = sample(
                    model,
                    inputs["pixel_values"],
                    count,
                    max_completion_length=self.processor.code_len,
                    do_sample=count > 1,
                )
                made = self.decoder(completions.completion_ids, inputs)
                repeated = [reference for reference in truth for _ in range(count)]
                paid = np.reshape(self.task.reward(completions=made, references=repeated), (-1, count)).mean(1)
                rewards[name] += paid.tolist()
                if count == 1:
                    predictions += made
        weights = resampled_weights(len(rows), NUM_RESAMPLES)
        columns = self.task.columns(predictions, references, weights, self.processor)
        return columns | {
            name: weights @ np.array(paid) / len(rows) for name, paid in rewards.items() if paid
        }, predictions

    def choose(self, row: str, learning_rates: Sequence[float]) -> tuple[float, dict]:
        """The row's rate that does best on validation with the first seed, and a record of what each reaches."""
        folders = {rate: self.trained(row, rate, self.args.seeds[0]) for rate in learning_rates}
        reached = {rate: self.measure(folder, "validation")[0] for rate, folder in folders.items()}
        return best_rate({rate: columns[self.task.chosen_by][0] for rate, columns in reached.items()})

    def draw(self, predictions: dict[str, list]) -> Image.Image:
        """Some test images, a row each: what the first seed's models make of them."""
        strips = []
        for index in range(min(NUM_DRAWN, len(self.rows["test"]))):
            row = self.rows["test"][index]
            made = {name: of_row[index] for name, of_row in predictions.items()}
            strips.append(_strip(self.args.task, self.processor, row, made))
        return joined(strips, down=True)


def _strip(task: str, processor, row: dict, made: dict) -> Image.Image:
    reference = processor.get_references([row])[0]
    if task == "colorization":
        return colorization.draw(row["image"], made, reference, side=160)
    cells = [panoptic.draw(row["image"], reference, None, processor.categories, scale=4)]
    cells += [panoptic.draw(row["image"], one, reference, processor.categories, scale=4) for one in made.values()]
    return joined(cells)


def main(args: StudyArguments, model_args: pretrain_panoptic.ModelArguments, data_args: DataArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = Study(args, model_args, data_args)
    chosen, rates = study.choose("mle_continued", args.control_learning_rates)
    _, rates_of_tuned = study.choose("tuned", args.learning_rates)
    rows = {"mle": ("mle", args.mle_learning_rate), f"mle_continued {chosen:g}": ("mle_continued", chosen)}
    rows |= {f"tuned {rate:g}": ("tuned", rate) for rate in args.learning_rates}
    ceiling, _ = study.measure(None, "test")
    columns, costs, drawn = {"stage1": {name: [value] for name, value in ceiling.items()}}, {"stage1": []}, {}
    for row, (name, rate) in rows.items():
        folders = [study.trained(name, rate, seed) for seed in (args.mle_seeds if name == "mle" else args.seeds)]
        measured = [study.measure(folder, "test") for folder in folders]
        columns[row] = {name: [run[name] for run, _ in measured] for name in measured[0][0]}
        costs[row] = [cost(folder) for folder in folders]
        drawn[label(row)] = measured[0][1]
    settings = {**asdict(args), **asdict(model_args), **asdict(data_args)}
    results = {
        "settings": {name: value for name, value in settings.items() if name not in PATHS},
        "num_images": {split: len(rows) for split, rows in study.rows.items()},
        "learning_rate_of_mle_continued": rates,
        "learning_rate_of_tuned": rates_of_tuned,
        "rows": summaries(columns, costs),
        "differences": differences(columns, list(columns)[3:], list(columns)[1:3]),
    }
    write_json(results, args.output or f"results/{args.task}.json")
    picture = Path(args.picture or f"docs/images/{args.task}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    study.draw(drawn).save(picture)
    print(table(results), difference_table(results), sep="\n\n")
    return results


def column_names(results: dict) -> dict[str, str]:
    return TASKS[results["settings"]["task"]].names | REWARDS


def table(results: dict) -> str:
    """The rows as Markdown: means over the seeds."""
    return studies.row_table(results, column_names(results), label, _form)


def difference_table(results: dict) -> str:
    """What tuning gains, with intervals of 95 % over the test images, as Markdown."""
    return studies.difference_table(results, column_names(results), label, _form)


def _form(name: str) -> str:
    return ".1f" if name in ("psnr", "hasler_colorfulness") else ".3f"


def label(row: str) -> str:
    """The name of a row, with the learning rate of tuning: "tuned, 3e-05"."""
    name, *rate = row.split()
    return f"{ROWS[name]}, {rate[0]}" if name == "tuned" else ROWS[name]


if __name__ == "__main__":
    main(*TrlParser((StudyArguments, pretrain_panoptic.ModelArguments, DataArguments)).parse_args_and_config())
