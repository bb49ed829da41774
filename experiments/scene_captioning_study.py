"""The experiment with captions of scenes: what more MLE, better decoding and tuning for CIDEr make of one MLE model a seed.

    python experiments/scene_captioning_study.py

Scenes are drawn when asked for, and none is seen twice. MLE learns all five sentences of each image; its first part is common
to the seeds, which then go on with other scenes each. The best model on validation is where the other rows start: MLE
continued, with a new cosine of the learning rate and more time than tuning takes, and tuning for CIDEr, with the end of a
sentence counted as a word and without. Each takes the learning rate that does best on validation; of MLE continued the last
model counts, whose loss is lowest, of tuning the best on validation. Models write greedily, with beams, and by the consensus
of 16 samples. What is finished is kept in `work_dir`, and a training goes on where it was interrupted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tables
import torch
from bootstrap import resampled_weights
from caption_measures import DECODINGS, NUM_SAMPLES, answers, caption_columns, effective_forms, num_forms, samples
from caption_scenes import (
    ENCODER,
    MAX_TOKENS,
    NUM_COUNTED,
    SCENES,
    captioned_scenes,
    captioner,
    make_processor,
    make_rewards,
)
from curves import line_over_seeds
from PIL import Image
from runs import commit, weights_of
from study import Study
from transformers import VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.analysis import charts
from vision_rl.data.handwriting import Split
from vision_rl.drawing import draw_grid
from vision_rl.tasks.captioning import coco_captions, draw
from vision_rl.trainer.losses import mle_loss


RESULTS = Path(__file__).parent / "results"
CHECKPOINT = Path(__file__).parent / "checkpoints" / "scene-captions"  # MLE of the first seed
NUM_RESAMPLES = 1000  # of the test images, for the intervals
NUM_SHOWN = 12  # test images with their sentences
NUM_TRAIN_SCENES = 1_000_000  # to draw from: more than any row learns from
# No row sees what the model has seen that it starts from.
SEEDS_OF_SCENES = {"mle_first": 0, "mle": 3, "mle_continued": 1, "tuned": 2, "tuned_without_end": 2}
NAMES = {
    "mle_first": "MLE, common part",
    "mle": "MLE",
    "mle_continued": "MLE continued",
    "tuned": "tuned for CIDEr",
    "tuned_without_end": "tuned, end not counted",
}
PATHS = ("checkpoint", "work_dir", "output", "picture")
COLUMNS = {
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "reward": "reward",
    "sampled_reward": "reward, sampled",
    "num_words": "words",
    "forms": "forms",
    "sampled_forms": "forms of samples",
    "milliseconds": "ms an image",
}
TUNED = {"tuned": "with end", "tuned_without_end": "without end"}  # the reward of each
OF_TUNED = ("greedy", "beam 4")  # their decodings
OF_THE_SET = ("bleu_4", "forms", "sampled_forms", "milliseconds")  # no means over images, so without an interval
COMPARED = ("cider", "rouge_l", "reward")
ON_CURVE = [
    ("step", "d"),
    ("cpu_seconds", ".0f"),
    ("eval_loss", ".3f"),
    ("reward", ".3f"),
    ("eval_reward", ".3f"),
    ("eval_cider", ".3f"),
    ("eval_mean_length", ".1f"),
    ("eval_unfinished", ".3f"),
]
TRAINING = {
    "optim": "adamw_torch",
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "max_completion_length": MAX_TOKENS,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 100,
    "eval_strategy": "steps",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "cider",
}


@dataclass
class StudyArguments:
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    first_seed: int = 0
    first_learning_rate: float = 2e-3  # of MLE until the seeds part
    first_steps: int = 2500  # of 16 images with 5 captions each
    mle_learning_rate: float = 1e-3
    mle_steps: int = 2000
    control_learning_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3])
    control_steps: int = 700
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4])
    steps: int = 300  # of tuning, 16 images with 8 samples each
    num_eval_images: int = 300  # during training
    num_test_images: int = 1000
    checkpoint: str | None = None  # where the rows start; None: at an MLE model of their own seed
    work_dir: str = "runs/scene-captions"
    output: str = str(RESULTS / "scene-captions.json")
    picture: str = "runs/scene-captions/sentences.png"
    threads: int = 1


class AllCaptionsMLETrainer(VisionMLETrainer):
    """MLE of all captions of an image at once, in place of one that is drawn: it is encoded once for the five of them."""

    def _count_items(self, batch: dict) -> float:
        tokenizer: Any = self.processor.tokenizer
        captions = batch["columns"].columns["captions"]
        ended = [text + tokenizer.eos_token for of_image in captions for text in of_image]
        tokens = tokenizer(ended, padding=True, return_tensors="pt")
        batch["all_labels"] = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)  # (B * 5, T)
        return float((batch["all_labels"] != -100).sum())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["all_labels"]
        images = self.unwrap(model).encoder(pixel_values=inputs["pixel_values"]).last_hidden_state  # (B, N, d)
        images = images.repeat_interleave(len(labels) // len(images), dim=0)
        outputs = model(encoder_outputs=BaseModelOutput(last_hidden_state=images), labels=labels)
        loss = self.mean_over_step(mle_loss(outputs.logits, labels), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class SceneCaptioningStudy(Study):
    """The models of the experiment, and what they reach."""

    def __init__(self, args: StudyArguments):
        super().__init__(Path(args.work_dir), args.seeds)
        self.args = args
        self.processor = make_processor()
        self.rewards = make_rewards(self.processor)

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        config = TRAINING | {"learning_rate": learning_rate, "seed": seed}
        if row == "mle_continued":  # the loss is lowest at the end, and CIDEr on so few images chooses a lucky model
            config["load_best_model_at_end"] = False
        if row in TUNED:
            steps = {"max_steps": self.args.steps, "eval_steps": 50, "save_steps": 50, "warmup_steps": 20}
            return config | steps | {"num_generations": NUM_SAMPLES, "lr_scheduler_type": "linear"}
        num_steps, every = {
            "mle_first": (self.args.first_steps, 500),
            "mle": (self.args.mle_steps, 500),
            "mle_continued": (self.args.control_steps, 100),
        }[row]
        steps = {"max_steps": num_steps, "eval_steps": every, "save_steps": every, "warmup_steps": 100}
        decay = 0.0 if row == "mle_continued" else 0.01
        return config | steps | {"weight_decay": decay, "lr_scheduler_type": "cosine"}

    def start(self, row: str, seed: int) -> Path | None:
        if row == "mle_first":
            return None
        if row == "mle":
            return self.trained("mle_first", self.args.first_learning_rate, self.args.first_seed)
        if self.args.checkpoint is not None:
            return Path(self.args.checkpoint)
        return self.trained("mle", self.args.mle_learning_rate, seed)

    def other_settings(self) -> dict:
        scenes = {f"scenes.{name}": value for name, value in SCENES.items()}
        return {**scenes, "encoder": weights_of(ENCODER), "images_counted_for_cider": NUM_COUNTED}

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        data = {
            "train_dataset": captioned_scenes("train", NUM_TRAIN_SCENES, SEEDS_OF_SCENES[row]),
            "eval_dataset": captioned_scenes("validation", self.args.num_eval_images),
            "processing_class": self.processor,
            "compute_metrics": coco_captions,
        }
        if start is None:
            model = captioner(self.processor, config["seed"])
        else:
            model = VisionEncoderDecoderModel.from_pretrained(start)
        if row in TUNED:
            return VisionRewardTrainer(model, self.rewards[TUNED[row]], VisionRewardConfig(**config), **data)
        return AllCaptionsMLETrainer(model, VisionMLEConfig(**config), **data)

    def measure(self, folder: Path, split: Split, decoding: str = "greedy") -> tuple[dict[str, np.ndarray], list[str]]:
        """The columns, `(1 + R,)` each: of the images and of their resamples; and the captions. Kept, by the weights."""
        kept = [weights_of(folder), split, self.args.num_test_images, decoding.replace(" ", "-")]
        file = self.folder / "measured" / f"{'-'.join(map(str, kept))}.npz"
        if not file.exists():
            columns, captions = self._measured(folder, split, decoding)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file.with_suffix(".part.npz"), captions=captions, **columns)
            file.with_suffix(".part.npz").rename(file)
        columns = dict(np.load(file))
        return columns, columns.pop("captions").tolist()

    def _measured(self, folder: Path, split: Split, decoding: str) -> tuple[dict[str, np.ndarray], list[str]]:
        model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
        scenes = captioned_scenes(split, self.args.num_test_images)
        rows = [scenes[index] for index in range(len(scenes))]
        pixel_values = self.processor(images=[row["image"] for row in rows])["pixel_values"]
        references = self.processor.get_references(rows)
        reward = self.rewards["with end"]
        found = answers(model, self.processor, pixel_values, decoding, self.rewards, MAX_TOKENS)
        more = {"reward": reward(found.captions, references, found.ids)}
        of_the_set = {"forms": num_forms(found.captions), "milliseconds": found.milliseconds}
        if decoding == "greedy":
            texts, ids = samples(model, self.processor, pixel_values, MAX_TOKENS)
            repeated = [of_image for of_image in references for _ in range(NUM_SAMPLES)]
            more["sampled_reward"] = np.reshape(reward(texts, repeated, ids), (-1, NUM_SAMPLES)).mean(1)
            of_the_set["sampled_forms"] = effective_forms(texts)
        weights = resampled_weights(len(rows), NUM_RESAMPLES if split == "test" else 0)
        columns = caption_columns(found.captions, references, weights, more)
        columns |= {name: np.full(len(weights), value) for name, value in of_the_set.items()}
        return {name: columns[name] for name in COLUMNS if name in columns}, found.captions

    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        return columns["cider"][0]

    def curve(self, row: str, learning_rate: float, seed: int) -> list[dict]:
        return self.evaluations(row, learning_rate, seed, [name for name, _ in ON_CURVE])


def best_decoding(results: dict) -> str:
    """The decoding with which MLE, continued, has the best CIDEr."""
    reached = {name: results["rows"][f"mle_continued, {name}"]["cider"]["mean"] for name in DECODINGS}
    return max(reached, key=reached.__getitem__)


def main(args: StudyArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = SceneCaptioningStudy(args)
    for seed in args.seeds:
        study.trained("mle", args.mle_learning_rate, seed)
    control_rate, control_rates = study.choose("mle_continued", args.control_learning_rates)
    tuned_rate, tuned_rates = study.choose("tuned", args.learning_rates)
    rates = {"mle": args.mle_learning_rate, "mle_continued": control_rate} | dict.fromkeys(TUNED, tuned_rate)
    for row, rate in rates.items():
        folders = [study.trained(row, rate, seed) for seed in args.seeds]
        for decoding in DECODINGS if row not in TUNED else OF_TUNED:
            study.test(f"{row}, {decoding}", folders, decoding=decoding)
    results = {
        "commit": commit(),
        "settings": {name: value for name, value in asdict(args).items() if name not in PATHS},
        "training": {row: study.config(row, rate, args.seeds[0]) for row, rate in rates.items()},
        "learning_rates": {"mle_continued": control_rates, "tuned": tuned_rates},
        **study.results(
            [f"{row}, greedy" for row in TUNED],
            [f"{row}, {decoding}" for row in ("mle", "mle_continued") for decoding in DECODINGS],
        ),
        "curves": {
            "mle_first": [study.curve("mle_first", args.first_learning_rate, args.first_seed)],
            **{row: [study.curve(row, rate, seed) for seed in args.seeds] for row, rate in rates.items()},
        },
        "captions": sentences(study),
    }
    for of_row in (*results["rows"].values(), *results["differences"].values()):
        for name in OF_THE_SET:
            if name in of_row:
                of_row[name]["interval"] = None
    tables.write_json(results, args.output)
    Path(args.picture).parent.mkdir(parents=True, exist_ok=True)
    picture(results).save(args.picture)
    print(table(results), difference_table(results), sep="\n\n")
    return results


def sentences(study: SceneCaptioningStudy) -> list[dict]:
    """What is said of the first test images."""
    scenes = captioned_scenes("test", NUM_SHOWN)
    return [
        {"references": scenes[place]["captions"]} | {row: texts[place] for row, texts in study.predictions.items()}
        for place in range(len(scenes))
    ]


def picture(results: dict) -> Image.Image:
    """The first test images with what is said of each, and the five sentences."""
    shown = {
        "mle, greedy": "MLE",
        "mle, beam 8": "beam 8",
        "tuned, greedy": "tuned",
        "tuned_without_end, greedy": "no end",
    }
    scenes = captioned_scenes("test", len(results["captions"]))
    return draw_grid(
        [
            draw(scene["image"], {name: said[row] for row, name in shown.items()}, scene["captions"])
            for scene, said in zip(scenes, results["captions"], strict=True)
        ]
    )


def table(results: dict) -> str:
    """The rows as Markdown: means over the seeds."""
    return tables.row_table(results, COLUMNS, label, form)


def difference_table(results: dict) -> str:
    """What tuning gains, with intervals of 95 % over the test images, as Markdown."""
    return tables.difference_table(results, {name: COLUMNS[name] for name in COMPARED}, label)


def rate_table(results: dict) -> str:
    """CIDEr on validation of each learning rate, of the first seed, as Markdown."""
    reached = {row: tried["validation"] for row, tried in results["learning_rates"].items()}
    rates = sorted({rate for tried in reached.values() for rate in tried}, key=float)
    rows = [
        [NAMES.get(row, row), *(f"{tried[rate]['cider']:.3f}" if rate in tried else "" for rate in rates)]
        for row, tried in reached.items()
    ]
    return tables.markdown(["CIDEr on validation, greedy", *rates], rows)


def curve_table(results: dict) -> str:
    """What each training reached on validation after so many steps, first seed, greedily, as Markdown."""
    rows = [
        [
            NAMES[row],
            *(f"{point[name]:{precision}}" if point.get(name) is not None else "" for name, precision in ON_CURVE),
        ]
        for row, curves in results["curves"].items()
        for point in curves[0]
    ]
    titles = ["steps", "core seconds", "loss", "reward of samples", "reward, greedy", "CIDEr", "words", "unfinished"]
    return tables.markdown(["", *titles], rows)


def curve_charts(results: dict) -> dict[str, str]:
    """Figure 6 as SVG: the reward and CIDEr on validation over the steps, means over the seeds, which the bands span."""
    curves = results["curves"]
    tuned = curves["tuned_without_end"]
    rewards = [(tuned, "eval_reward", "greedy"), (tuned, "reward", "samples")]
    metrics = [(curves[row], "eval_cider", NAMES[row]) for row in ("tuned_without_end", "mle_continued")]
    return {
        what: charts.line_chart(title, [line_over_seeds(*line, colour) for colour, line in enumerate(lines)], "steps")
        for what, title, lines in (
            ("reward", "Reward, end not counted", rewards),
            ("metric", "CIDEr on validation, greedy", metrics),
        )
    }


def form(name: str) -> str:
    return {"forms": ".0f", "sampled_forms": ".1f", "milliseconds": ".1f", "num_words": ".1f"}.get(name, ".3f")


def label(row: str) -> str:
    """ "mle, greedy" to "MLE, greedy"."""
    name, decoding = row.split(", ")
    return f"{NAMES[name]}, {decoding.replace('mbr', 'consensus of')}"


if __name__ == "__main__":
    main(*TrlParser((StudyArguments,)).parse_args_and_config())
