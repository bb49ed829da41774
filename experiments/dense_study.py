"""The experiments with codes: more MLE against tuning, for a model of panoptic maps or of colours.

    python experiments/dense_study.py --stage1 runs/panoptic-stage1
    python experiments/dense_study.py --task colorization --stage1 runs/colorization-stage1 --images_dir photos

Made for two CPU cores. All runs start from one MLE model, or from one for each seed; it is the checkpoint of its training
that was best on validation, or one that `mle_models` names. "MLE continued" is to take as long as tuning: choose
`control_steps` so. Both learning rates are chosen on validation with the first seed; tuning is shown with all its rates.
"Stage I" decodes the true codes: the ceiling. Finished models stay in `work_dir` and are used again.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tables
import torch
from bootstrap import resampled_weights
from curves import line_over_seeds
from dense_data import DataArguments, colorization_data, panoptic_data
from dense_models import MLE_DEFAULTS, TUNE_DEFAULTS, ModelArguments, code_writer
from PIL import Image
from runs import SHORT_TRAINING, commit, weights_of
from study import Study
from transformers import VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.analysis import charts
from vision_rl.drawing import draw_grid
from vision_rl.models.sampling import sample
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks import colorization, panoptic


NUM_RESAMPLES = 1000  # resamples of the test images, for the intervals
NUM_SAMPLES = 4
NUM_EVALUATIONS = 16  # of a training on validation, for the curve; an interrupted one goes on from the last
NUM_DRAWN = 6  # test images in the picture
PATHS = ("stage1", "encoder", "images_dir", "masks_dir", "annotation_file", "work_dir", "output", "picture")


PANOPTIC_COLUMNS = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"}


class Task(NamedTuple):
    """What differs between the tasks. `columns(predictions, references, weights, processor)` gives `(1 + R,)` each."""

    data: Callable
    processor: type
    reward: Callable
    metrics: Callable[..., Callable]  # makes the metric from the processor
    columns: Callable[..., dict[str, np.ndarray]]
    names: dict[str, str]  # the titles of the columns
    chosen_by: str  # the column by which learning rates are chosen
    best_by: str  # the metric by which the MLE model is chosen
    drawn: str  # the metric in the chart of the training


def panoptic_columns(predictions: list, references: list, weights: np.ndarray, processor) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ of the images and of their resamples. Each image's part of each category's sums is computed once."""
    metric = panoptic.PanopticQuality(processor.categories)
    totals = np.stack([metric.totals([image]) for image in metric.per_image(predictions, references)])  # (N, 4, C)
    qualities = [metric.of_totals(of_images) for of_images in np.tensordot(weights, totals, 1)]  # 1 + R
    return {name: np.array([quality[name] for quality in qualities]) for name in PANOPTIC_COLUMNS}


def colorization_columns(predictions: list, references: list, weights: np.ndarray, _) -> dict[str, np.ndarray]:
    """Means over the images, and over their resamples."""
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
        PANOPTIC_COLUMNS,
        "pq",
        "pq",
        "pq",
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
        "loss",
        "psnr",
    ),
}
ROWS = {"stage1": "stage I", "mle": "MLE", "mle_continued": "MLE continued", "tuned": "tuned"}
REWARDS = {"greedy_reward": "reward, greedy", "sampled_reward": "reward, sampled"}


@dataclass
class StudyArguments:
    task: Literal["panoptic", "colorization"] = "panoptic"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    mle_seeds: list[int] = field(default_factory=lambda: [0])  # the i-th run starts from the i-th, in turn
    mle_models: list[str] | None = None  # one for each of mle_seeds, to start from in place of training MLE models
    mle_steps: int = 8000
    mle_learning_rate: float = 1e-3
    mle_batch_size: int = 32  # "MLE continued" has 32
    steps: int = 300  # of tuning
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    control_steps: int = 1500
    control_learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4, 3e-4])
    work_dir: str = "runs/dense-study"
    output: str | None = None  # None: experiments/results/{task}.json
    picture: str | None = None  # None: docs/images/{task}.png
    threads: int = 1


class DenseStudy(Study):
    """The models of the experiment, and their results."""

    def __init__(self, args: StudyArguments, model_args: ModelArguments, data_args: DataArguments):
        if args.mle_models is not None and len(args.mle_models) != len(args.mle_seeds):
            raise ValueError(f"There are {len(args.mle_models)} mle_models for {len(args.mle_seeds)} mle_seeds.")
        super().__init__(Path(args.work_dir) / args.task, args.seeds)
        self.args, self.model_args, self.data_args = args, model_args, data_args
        self.task = TASKS[args.task]
        self.stage1 = UViMModel.from_pretrained(model_args.stage1).eval()
        self.processor = self.task.processor.from_pretrained(model_args.stage1)
        self.decoder = UViMDecoder(self.stage1, self.processor)
        self.rows = self.task.data(data_args)._asdict()

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        steps = {"mle": self.args.mle_steps, "mle_continued": self.args.control_steps, "tuned": self.args.steps}[row]
        every = max(1, steps // NUM_EVALUATIONS)
        common = {
            "learning_rate": learning_rate,
            "max_grad_norm": 1.0,
            "seed": seed,
            "max_steps": steps,
            **dict.fromkeys(("eval_strategy", "save_strategy"), "steps"),
            **dict.fromkeys(("eval_steps", "save_steps"), every),
            "save_total_limit": 1,
        }
        if row != "mle":
            return (TUNE_DEFAULTS if row == "tuned" else MLE_DEFAULTS) | SHORT_TRAINING | common
        best = {"load_best_model_at_end": True, "metric_for_best_model": self.task.best_by}
        return MLE_DEFAULTS | common | best | {"per_device_train_batch_size": self.args.mle_batch_size}

    def trained(self, row: str, learning_rate: float, seed: int) -> Path:
        if row == "mle" and self.args.mle_models is not None:
            return Path(self.args.mle_models[self.args.mle_seeds.index(seed)])
        return super().trained(row, learning_rate, seed)

    def start(self, row: str, seed: int) -> Path | None:
        if row == "mle":
            return None
        of_mle = self.args.mle_seeds[self.seeds.index(seed) % len(self.args.mle_seeds)]
        return self.trained("mle", self.args.mle_learning_rate, of_mle)

    def other_settings(self) -> dict:
        return {
            **{f"model.{name}": value for name, value in asdict(self.model_args).items()},
            **{f"data.{name}": value for name, value in asdict(self.data_args).items()},
            "stage1_weights": weights_of(Path(self.model_args.stage1)),
        }

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        data = {
            "train_dataset": self.rows["train" if start is None else "later"],
            "eval_dataset": self.rows["validation"],
            "processing_class": self.processor,
            "compute_metrics": self.task.metrics(self.processor),
            "completion_decoder": self.decoder,
        }
        if start is None:
            torch.manual_seed(config["seed"])
            model = code_writer(self.model_args, self.stage1, self.processor)
        else:
            model = VisionEncoderDecoderModel.from_pretrained(start)
        if row == "tuned":
            return VisionRewardTrainer(model, self.task.reward, VisionRewardConfig(**config), **data)
        return VisionMLETrainer(model, VisionMLEConfig(**config), **data)

    @torch.no_grad()
    def measure(self, folder: Path | None, split: str) -> tuple[dict[str, np.ndarray], list]:
        """The columns, `(1 + R,)` each, and the predictions of the model in `folder`; without one, those of stage I."""
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

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        return columns[self.task.chosen_by][0]

    def curve(self, row: str, learning_rate: float, seed: int) -> list[dict]:
        measured = [f"eval_{name}" for name in ("loss", "reward", *self.task.names)]
        return self.evaluations(row, learning_rate, seed, ["step", "cpu_seconds", *measured])

    def draw(self, predictions: dict[str, list]) -> Image.Image:
        """A row for each of some test images: the answers of the first seed's models."""
        cells, count = [], min(NUM_DRAWN, len(self.rows["test"]))
        for index in range(count):
            made = {name: of_row[index] for name, of_row in predictions.items()}
            cells += _cells(self.args.task, self.processor, self.rows["test"][index], made)
        if self.args.task == "colorization":
            return draw_grid(cells, columns=1, gap=6)  # photos have several shapes, so each has its own titles
        return draw_grid(cells, columns=len(cells) // count, gap=6, headings=("truth", *predictions))


def _cells(task: str, processor, row: dict, made: dict) -> list[Image.Image]:
    """A picture of the truth and one of each model's answer; of a photo all in one, as photos have several shapes."""
    reference = processor.get_references([row])[0]
    if task == "colorization":
        return [colorization.draw(row["image"], made, reference, width=160)]
    cells = [panoptic.draw(row["image"], reference, width=256, categories=processor.categories)]
    return cells + [panoptic.draw(row["image"], one, reference, 256, processor.categories) for one in made.values()]


def main(args: StudyArguments, model_args: ModelArguments, data_args: DataArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = DenseStudy(args, model_args, data_args)
    chosen, rates = study.choose("mle_continued", args.control_learning_rates)
    _, rates_of_tuned = study.choose("tuned", args.learning_rates)
    trained = [("mle", args.mle_learning_rate, args.mle_seeds), ("mle_continued", chosen, args.seeds)]
    trained += [("tuned", rate, args.seeds) for rate in args.learning_rates]
    study.test("stage1", [None])
    for row, rate, seeds in trained:
        study.test(row if row == "mle" else f"{row} {rate:g}", [study.trained(row, rate, seed) for seed in seeds])
    rows = list(study.predictions)
    settings = {**asdict(args), **asdict(model_args), **asdict(data_args)}
    results = {
        "commit": commit(),
        "settings": {name: value for name, value in settings.items() if name not in PATHS},
        "num_images": {split: len(rows) for split, rows in study.rows.items()},
        "learning_rate_of_mle_continued": rates,
        "learning_rate_of_tuned": rates_of_tuned,
        **study.results(tuned=rows[3:], controls=rows[1:3]),
        "curves": {
            f"{row} {rate:g}": [study.curve(row, rate, seed) for seed in seeds] for row, rate, seeds in trained
        },
        "curves_of_other_rates": {  # of the control, with the first seed
            f"{rate:g}": study.curve("mle_continued", rate, args.seeds[0])
            for rate in args.control_learning_rates
            if rate != chosen
        },
    }
    tables.write_json(results, args.output or f"experiments/results/{args.task}.json")
    picture = Path(args.picture or f"docs/images/{args.task}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    study.draw({label(row): study.predictions[row] for row in rows[1:]}).save(picture)
    print(table(results), difference_table(results), sep="\n\n")
    return results


def column_names(results: dict) -> dict[str, str]:
    return TASKS[results["settings"]["task"]].names | REWARDS


def table(results: dict) -> str:
    """The rows of the study as Markdown, means over the seeds."""
    return tables.row_table(results, column_names(results), label, _form)


def difference_table(results: dict) -> str:
    """What tuning gains, with 95 % intervals over the test images, as Markdown."""
    return tables.difference_table(results, column_names(results), label, _form)


def curve_charts(results: dict) -> dict[str, str]:
    """Figure 6 as SVG: the reward and the metric over the steps; see `line_over_seeds`."""
    task = TASKS[results["settings"]["task"]]
    rows = {row: curves for row, curves in results["curves"].items() if not row.startswith("mle ")}
    tuned = {row: curves for row, curves in rows.items() if row.startswith("tuned")}
    colours = {row: colour for colour, row in enumerate(rows)}
    drawn = {}
    for what, title, name, shown in (
        ("reward", "Reward on validation", "reward", tuned),
        ("metric", f"{task.names[task.drawn]} on validation", task.drawn, rows),
    ):
        lines = [line_over_seeds(curves, f"eval_{name}", label(row), colours[row]) for row, curves in shown.items()]
        samples = [(colours[row], curves) for row, curves in shown.items() if what == "reward"]
        lines += [line_over_seeds(curves, "reward", "", colour, dashed=True) for colour, curves in samples]
        how = "; dashed: samples in training" if samples else ""
        drawn[what] = charts.line_chart(title, lines, f"steps (greedy answers{how})")
    return drawn


def _form(name: str) -> str:
    return ".1f" if name in ("psnr", "hasler_colorfulness") else ".3f"


def label(row: str) -> str:
    """The title of a row; a tuned one has its learning rate in it: "tuned, 3e-05"."""
    name, *rate = row.split()
    return f"{ROWS[name]}, {rate[0]}" if name == "tuned" else ROWS[name]


if __name__ == "__main__":
    main(*TrlParser((StudyArguments, ModelArguments, DataArguments)).parse_args_and_config())
