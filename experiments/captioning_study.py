"""Captions of photos: what more MLE, better decoding and tuning for CIDEr make of a captioner, by cross-validation.

    python experiments/captioning_study.py --images_dir flickr8k/images --annotation_file flickr8k/captions.json \\
        --encoder facebook/dinov2-small --decoder google-bert/bert-base-uncased

Made for two CPU cores and few photos: the encoder is frozen, and its output computed once. In each fold all rows start from
one MLE model, which is stopped early by CIDEr on validation, and each photo is tested by the models of the fold that has not
seen it. "MLE continued" takes longer than tuning does. Each takes the learning rate that does best on the first fold's validation
photos. What is finished is kept in `work_dir`, and a study goes on where it was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tables
import torch
from bootstrap import resampled_weights
from caption_measures import DECODINGS, NUM_SAMPLES, answers, caption_columns, cider_rewards, samples
from captioner import ModelArguments, captioner, folds
from runs import SHORT_TRAINING, commit, cost, weights_of
from study import Study
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.tasks import captioning
from vision_rl.tasks.captioning import coco_captions


NUM_RESAMPLES = 1000  # of the test images, for the intervals
MAX_TOKENS = 24
NUM_SHOWN = 10  # photos whose captions are printed
TUNED = {"tuned": "with end", "tuned_without_end": "without end"}  # the reward of each
EARLY_STOPPED = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "save_steps": 50,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "cider",
}
NAMES = {
    "mle": "MLE",
    "mle_continued": "MLE continued",
    "tuned": "tuned for CIDEr",
    "tuned_without_end": "tuned, end not counted",
}
COLUMNS = {
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "greedy_reward": "reward, greedy",
    "sampled_reward": "reward, sampled",
    "unfinished": "unfinished",
    "num_words": "words",
}
PATHS = ("images_dir", "annotation_file", "karpathy_file", "encoder", "decoder", "work_dir", "output")


@dataclass
class StudyArguments:
    folds: int = 5
    mle_steps: int = 800  # at most: 32 images each
    mle_learning_rate: float = 3e-4
    steps: int = 150  # of tuning, 16 images with 8 samples each
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    control_steps: int = 500  # 32 images each
    control_learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    decodings: list[str] = field(default_factory=lambda: list(DECODINGS))  # of MLE and of more MLE
    work_dir: str = "runs/captioning-study"
    output: str = "experiments/results/captioning.json"
    threads: int = 1


@dataclass
class Answered:
    """What the model of a fold says of that fold's photos."""

    captions: list[str]
    references: list[list[str]]
    rewards: dict[str, list[float]]  # one an image


class CaptioningStudy(Study):
    """The models of the experiment, one a fold in the place of seeds, and what they reach."""

    def __init__(self, args: StudyArguments, model_args: ModelArguments, options: captioning.Options):
        rows, self.rows_of = folds(options, args.folds)
        super().__init__(Path(args.work_dir), range(len(self.rows_of)))
        self.args, self.model_args, self.options = args, model_args, options
        self.captions = [rows.select(of_fold["train"])["captions"] for of_fold in self.rows_of]  # of each fold
        made = [captioner(model_args, options, captions) for captions in self.captions]
        self.processors = [processor for _, processor in made]
        self.rewards = [
            cider_rewards(processor, captions)
            for processor, captions in zip(self.processors, self.captions, strict=True)
        ]
        self.encoded = models.EncodedDataset(rows, made[0][0], self.processors[0])  # the encoder is that of every fold
        self.by_fold: dict[str, list[float]] = {}  # CIDEr of each tested row

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        tuned = row in TUNED
        config = {
            "learning_rate": learning_rate,
            "weight_decay": 0.05 if row == "mle" else 0.0,
            "max_grad_norm": 1.0,
            "max_completion_length": MAX_TOKENS,
            "per_device_train_batch_size": 16 if tuned else 32,
            "per_device_eval_batch_size": 64,
            "seed": seed,
        }
        if row == "mle":
            return config | EARLY_STOPPED | {"max_steps": self.args.mle_steps}
        if tuned:
            config["num_generations"] = NUM_SAMPLES
        return config | SHORT_TRAINING | {"max_steps": self.args.steps if tuned else self.args.control_steps}

    def start(self, row: str, seed: int) -> Path | None:
        return None if row == "mle" else self.trained("mle", self.args.mle_learning_rate, seed)

    def other_settings(self) -> dict:
        return {
            "folds": len(self.rows_of),
            **{f"model.{name}": value for name, value in asdict(self.model_args).items()},
            **{f"data.{name}": value for name, value in asdict(self.options).items()},
        }

    def part(self, split: str, fold: int) -> Subset:
        return Subset(self.encoded, self.rows_of[fold][split])

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        fold = config["seed"]
        data = {
            "train_dataset": self.part("train", fold),
            "eval_dataset": self.part("validation", fold),
            "processing_class": self.processors[fold],
            "compute_metrics": coco_captions,
        }
        torch.manual_seed(fold)
        model = self.new_model(fold) if start is None else self.frozen(start)
        if row in TUNED:
            reward = self.rewards[fold][TUNED[row]]
            return VisionRewardTrainer(model, reward, VisionRewardConfig(**config), **data)
        stopping = [EarlyStoppingCallback(4)] if row == "mle" else []
        return VisionMLETrainer(model, VisionMLEConfig(**config), callbacks=stopping, **data)

    def new_model(self, fold: int) -> VisionEncoderDecoderModel:
        return captioner(self.model_args, self.options, self.captions[fold])[0]

    def frozen(self, folder: Path) -> VisionEncoderDecoderModel:
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        model.encoder.requires_grad_(False)
        return model

    def answered(self, folder: Path, split: str, fold: int, decoding: str = "greedy") -> Answered:
        """What a model says, and what it earns; kept, by the weights."""
        what = [weights_of(folder), split, str(fold), decoding.replace(" ", "-")]
        file = self.folder / "answered" / f"{'-'.join(what)}.json"
        if not file.exists():
            tables.write_json(asdict(self._answered(folder, split, fold, decoding)), file)
        return Answered(**tables.read_json(file))

    def _answered(self, folder: Path, split: str, fold: int, decoding: str) -> Answered:
        model, rows, rewards = self.frozen(folder).eval(), self.part(split, fold), self.rewards[fold]
        processor = self.processors[fold]
        encoded = torch.stack([row["encoder_outputs"] for row in rows])
        references = processor.get_references(list(rows))
        found = answers(model, processor, encoded, decoding, rewards, MAX_TOKENS)
        paid = {"greedy_reward": rewards["with end"](found.captions, references, found.ids)}
        if decoding == "greedy":
            texts, ids = samples(model, processor, encoded, MAX_TOKENS)
            repeated = [of_image for of_image in references for _ in range(NUM_SAMPLES)]
            sampled = rewards["with end"](texts, repeated, ids)
            paid["sampled_reward"] = np.reshape(sampled, (-1, NUM_SAMPLES)).mean(1).tolist()
        return Answered(found.captions, [list(of_image) for of_image in references], paid)

    def measure(self, folder: Path, split: str) -> tuple[dict[str, np.ndarray], list[str]]:
        """The columns of the first fold's model, and its captions."""
        answered = self.answered(folder, split, self.seeds[0])
        return columns_of([answered], num_resamples=0), answered.captions

    def test(self, row: str, folders: Sequence[Path], decoding: str = "greedy") -> None:
        """Measure the models of all folds as one: each photo is tested by the model that has not seen it."""
        parts = [self.answered(folder, "test", fold, decoding) for fold, folder in enumerate(folders)]
        self.columns[row] = {name: [values] for name, values in columns_of(parts, NUM_RESAMPLES).items()}
        self.by_fold[row] = [round(coco_captions(part.captions, part.references)["cider"], 4) for part in parts]
        self.costs[row] = [cost(folder) for folder in folders]
        self.predictions[row] = parts[0].captions

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        return columns["cider"][0]


def columns_of(parts: Sequence[Answered], num_resamples: int) -> dict[str, np.ndarray]:
    """The columns of the photos of several folds together, `(1 + R,)` each."""
    captions, references = (
        [each for part in parts for each in getattr(part, name)] for name in ("captions", "references")
    )
    rewards = {name: [each for part in parts for each in part.rewards[name]] for name in parts[0].rewards}
    columns = caption_columns(captions, references, resampled_weights(len(captions), num_resamples), rewards)
    return {name: columns[name] for name in COLUMNS if name in columns}


def main(args: StudyArguments, model_args: ModelArguments, options: captioning.Options) -> dict:
    torch.set_num_threads(args.threads)
    study = CaptioningStudy(args, model_args, options)
    control_rate, control_rates = study.choose("mle_continued", args.control_learning_rates)
    tuned_rate, tuned_rates = study.choose("tuned", args.learning_rates)
    rates = {"mle": args.mle_learning_rate, "mle_continued": control_rate} | dict.fromkeys(TUNED, tuned_rate)
    for row, rate in rates.items():
        folders = [study.trained(row, rate, fold) for fold in study.seeds]
        for decoding in ("greedy",) if row in TUNED else args.decodings:
            study.test(f"{row}, {decoding}", folders, decoding=decoding)
    captions, paths = study.predictions, {**asdict(args), **asdict(model_args), **asdict(options)}
    results = {
        "commit": commit(),
        "settings": {name: value for name, value in paths.items() if name not in PATHS},
        "num_images": [{split: len(rows) for split, rows in of_fold.items()} for of_fold in study.rows_of],
        "learning_rates": {"mle_continued": control_rates, "tuned": tuned_rates},
        **study.results(
            [row for row in captions if row.split(",")[0] in TUNED],
            [row for row in captions if row.split(",")[0] not in TUNED],
        ),
        "cider_by_fold": study.by_fold,
        "captions": [
            {row: texts[place] for row, texts in captions.items() if row.endswith(", greedy")}
            for place in range(NUM_SHOWN)
        ],
    }
    for of_row in (*results["rows"].values(), *results["differences"].values()):
        of_row["bleu_4"]["interval"] = None  # of the whole set: resampling its images would need it counted anew
    tables.write_json(results, args.output)
    print(table(results), difference_table(results), sep="\n\n")
    return results


def table(results: dict) -> str:
    """The rows as Markdown: means over the seeds."""
    return tables.row_table(results, COLUMNS, label)


def difference_table(results: dict, columns: Sequence[str] = ("cider", "rouge_l", "sampled_reward")) -> str:
    """What tuning gains, with intervals of 95 % over the test images, as Markdown."""
    return tables.difference_table(results, {name: COLUMNS[name] for name in columns}, label)


def caption_table(results: dict) -> str:
    """What the first models say of ten test photos, greedily, as Markdown."""
    rows = list(results["captions"][0])
    return tables.markdown(
        [label(row) for row in rows], [[texts[row] for row in rows] for texts in results["captions"]]
    )


def fold_table(results: dict) -> str:
    """CIDEr of the test photos of each fold, as Markdown."""
    rows = [[label(row), *(f"{cider:.3f}" for cider in folds)] for row, folds in results["cider_by_fold"].items()]
    count = len(next(iter(results["cider_by_fold"].values())))
    return tables.markdown(["CIDEr", *(f"fold {fold + 1}" for fold in range(count))], rows)


def rate_table(results: dict) -> str:
    """CIDEr and the reward of a sample on the first fold's validation photos at each learning rate, as Markdown."""
    rows = [
        [NAMES[row], rate, *(f"{reached[name]:.3f}" for name in ("cider", "sampled_reward"))]
        for row, tried in results["learning_rates"].items()
        for rate, reached in tried["validation"].items()
    ]
    return tables.markdown(["", "learning rate", "CIDEr", "reward, sampled"], rows)


def label(row: str) -> str:
    """ "mle, beam 4" to "MLE, beam 4"."""
    name, how = row.split(", ")
    return f"{NAMES[name]}, {how.replace('mbr', 'consensus of')}"


if __name__ == "__main__":
    main(*TrlParser((StudyArguments, ModelArguments, captioning.Options)).parse_args_and_config())
