"""The captioning experiment: what more MLE and what tuning for CIDEr make of a captioner on photos (docs/captioning.md).

    python experiments/captioning_study.py --images_dir flickr8k/images --annotation_file flickr8k/captions.json \\
        --encoder facebook/dinov2-small --decoder google-bert/bert-base-uncased

Made for two CPU cores and few photos: the encoder is frozen, and its output computed once. All start from one MLE model,
stopped early by CIDEr on validation. "MLE continued" takes longer than tuning does; its learning rate is the one that does
best on validation with the first seed. Tuning is shown with all its rates. What is finished is kept in `work_dir`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tables
import torch
from bootstrap import resampled_weights
from caption_measures import caption_columns
from captioner import ModelArguments, captioner, splits
from runs import SHORT_TRAINING
from study import Study
from transformers import EarlyStoppingCallback, VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.models.sampling import sample
from vision_rl.tasks import captioning
from vision_rl.tasks.captioning import coco_captions


NUM_RESAMPLES = 1000  # of the test images, for the intervals
MAX_TOKENS = 24
NUM_SAMPLES = 8
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
NAMES = {"mle": "MLE", "mle_continued": "MLE continued", "tuned": "tuned for CIDEr"}
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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    mle_seed: int = 0
    mle_steps: int = 800  # at most: 32 images each
    mle_learning_rate: float = 3e-4
    steps: int = 100  # of tuning, 8 images with 8 samples each
    learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    control_steps: int = 340
    control_learning_rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4])
    work_dir: str = "runs/captioning-study"
    output: str = "experiments/results/captioning.json"
    threads: int = 1


class CaptioningStudy(Study):
    """The models of the experiment, and what they reach."""

    def __init__(self, args: StudyArguments, model_args: ModelArguments, options: captioning.Options):
        super().__init__(Path(args.work_dir), args.seeds)
        self.args, self.model_args, self.options = args, model_args, options
        model, self.processor = captioner(model_args, options)
        rows = splits(options)
        self.reward = captioning.REWARDS["cider"](self.processor, rows["train"])
        self.encoded = {
            split: models.EncodedDataset(of_split, model, self.processor) for split, of_split in rows.items()
        }

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        config = {
            "learning_rate": learning_rate,
            "weight_decay": 0.05 if row == "mle" else 0.0,
            "max_grad_norm": 1.0,
            "max_completion_length": MAX_TOKENS,
            "per_device_train_batch_size": 8 if row == "tuned" else 32,
            "per_device_eval_batch_size": 64,
            "seed": seed,
        }
        if row == "mle":
            return config | EARLY_STOPPED | {"max_steps": self.args.mle_steps}
        if row == "tuned":
            config["num_generations"] = NUM_SAMPLES
        return config | SHORT_TRAINING | {"max_steps": self.args.steps if row == "tuned" else self.args.control_steps}

    def start(self, row: str, seed: int) -> Path | None:
        return None if row == "mle" else self.trained("mle", self.args.mle_learning_rate, self.args.mle_seed)

    def other_settings(self) -> dict:
        return {
            **{f"model.{name}": value for name, value in asdict(self.model_args).items()},
            **{f"data.{name}": value for name, value in asdict(self.options).items()},
        }

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        data = {
            "train_dataset": self.encoded["train"],
            "eval_dataset": self.encoded["validation"],
            "processing_class": self.processor,
            "compute_metrics": coco_captions,
        }
        torch.manual_seed(config["seed"])
        model = captioner(self.model_args, self.options)[0] if start is None else self.frozen(start)
        if row == "tuned":
            return VisionRewardTrainer(model, self.reward, VisionRewardConfig(**config), **data)
        stopping = [EarlyStoppingCallback(4)] if row == "mle" else []
        return VisionMLETrainer(model, VisionMLEConfig(**config), callbacks=stopping, **data)

    def frozen(self, folder: Path) -> VisionEncoderDecoderModel:
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        model.encoder.requires_grad_(False)
        return model

    @torch.no_grad()
    def measure(self, folder: Path, split: str) -> tuple[dict[str, np.ndarray], list[str]]:
        """The columns, `(1 + R,)` each: of the images and of their resamples; and the greedy captions."""
        model, encoded = self.frozen(folder), self.encoded[split]
        torch.manual_seed(0)
        captions, references, rewards = [], [], {"greedy_reward": [], "sampled_reward": []}
        for start in range(0, len(encoded), 64):
            rows = [encoded[row] for row in range(start, min(start + 64, len(encoded)))]
            encoder_outputs = torch.stack([row["encoder_outputs"] for row in rows])
            truth = self.processor.get_references(rows)
            for name, count in (("greedy_reward", 1), ("sampled_reward", NUM_SAMPLES)):
                completions = sample(
                    model,
                    num_generations=count,
                    encoder_outputs=encoder_outputs,
                    max_completion_length=MAX_TOKENS,
                    do_sample=count > 1,
                )
                texts = self.processor.batch_decode(completions.completion_ids.flatten(0, 1).tolist())
                ids = completions.completion_ids.flatten(0, 1).tolist()
                repeated = [image for image in truth for _ in range(count)]
                paid = np.reshape(self.reward(texts, repeated, ids), (-1, count)).mean(1)
                rewards[name] += paid.tolist()
                if name == "greedy_reward":
                    captions += texts
            references += truth
        weights = resampled_weights(len(captions), NUM_RESAMPLES)
        columns = caption_columns(captions, references, weights, rewards)
        return {name: columns[name] for name in COLUMNS}, captions

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        return columns["cider"][0]


def main(args: StudyArguments, model_args: ModelArguments, options: captioning.Options) -> dict:
    torch.set_num_threads(args.threads)
    study = CaptioningStudy(args, model_args, options)
    chosen, rates = study.choose("mle_continued", args.control_learning_rates)
    controls = {"mle": args.mle_learning_rate, "mle_continued": chosen}
    for name, rate in [*controls.items(), *(("tuned", rate) for rate in args.learning_rates)]:
        seeds = [args.mle_seed] if name == "mle" else args.seeds
        study.test(f"{name} {rate:g}", [study.trained(name, rate, seed) for seed in seeds])
    captions, paths = study.predictions, {**asdict(args), **asdict(model_args), **asdict(options)}
    results = {
        "settings": {name: value for name, value in paths.items() if name not in PATHS},
        "num_images": {split: len(rows) for split, rows in study.encoded.items()},
        "learning_rate_of_mle_continued": rates,
        **study.results(list(captions)[2:], list(captions)[:2]),
        "captions": [
            dict(zip(captions, texts, strict=True)) for texts in list(zip(*captions.values(), strict=True))[:10]
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
    """What the first seed's models say of ten test images, as Markdown."""
    rows = list(results["rows"])
    return tables.markdown(
        [label(row) for row in rows], [[texts[row] for row in rows] for texts in results["captions"]]
    )


def label(row: str) -> str:
    """The name of a row, with the learning rate of tuning: "tuned for CIDEr, 3e-05"."""
    name, rate = row.split()
    return f"{NAMES[name]}, {rate}" if name == "tuned" else NAMES[name]


if __name__ == "__main__":
    main(*TrlParser((StudyArguments, ModelArguments, captioning.Options)).parse_args_and_config())
