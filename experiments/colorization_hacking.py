"""What happens when a model is tuned for colourfulness for too long, and what prevents it (docs/reward-hacking.md).

    python experiments/dense_study.py --task colorization --stage1 runs/colorization-stage1 --images_dir photos
    python experiments/colorization_hacking.py --model runs/dense-study/colorization/mle-lr0.001-seed0 --images_dir photos

All runs start from one MLE model. They are tuned for the reward alone; with a KL penalty towards the MLE model; with a
second reward for likeness to the photo; and for the reward alone in small steps, stopped early. The last one stops when
PSNR on held-out photos has fallen by more than `acceptable_loss`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from dense_data import DataArguments, colorization_data
from dense_models import TUNE_DEFAULTS
from PIL import Image
from runs import is_trained, record, weights_of
from tables import markdown, write_json
from transformers import TrainerCallback, VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.drawing import draw_grid
from vision_rl.models.sampling import sample
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.tasks.colorization import (
    ColorfulnessReward,
    ColorizationProcessor,
    colorization_metrics,
    draw,
    fidelity_reward,
)
from vision_rl.trainer.callbacks import RewardMetricDivergenceCallback


SHOWN = ("colorfulness", "psnr", "vivid_fraction", "hue_entropy", "hasler_colorfulness")
PATHS = ("model", "images_dir", "masks_dir", "annotation_file", "work_dir", "output", "pictures_dir")


@dataclass
class HackingArguments:
    model: str = "runs/dense-study/colorization/mle-lr0.001-seed0"
    steps: int = 300
    eval_steps: int = 20
    learning_rate: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.05, 0.5])
    fidelity_weights: list[float] = field(default_factory=lambda: [5.0])
    acceptable_loss: float = 1.0  # in dB of PSNR on held-out photos: where the last run stops
    careful_learning_rate: float = 1e-5  # of the run that stops early; it is evaluated ten times as often
    seed: int = 0
    work_dir: str = "runs/colorization-hacking"
    output: str = "experiments/results/colorization-hacking.json"
    pictures_dir: str = "docs/images"
    threads: int = 1


class StopBelow(TrainerCallback):
    """Ends the training at the first evaluation whose PSNR is more than `acceptable_loss` below that before step 1."""

    def __init__(self, acceptable_loss: float):
        self.acceptable_loss, self.floor = acceptable_loss, float("inf")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.global_step == 0:
            self.floor = metrics["eval_psnr"] - self.acceptable_loss
        elif metrics["eval_psnr"] < self.floor:
            control.should_training_stop = True


class Runs:
    """The four runs, each trained unless it is there already, and their curves on validation photos."""

    def __init__(self, args: HackingArguments, data_args: DataArguments):
        self.args, self.data_args = args, data_args
        data = colorization_data(data_args)
        self.train_dataset, self.eval_dataset = data.later, data.validation
        self.processor = ColorizationProcessor.from_pretrained(args.model)
        self.decoder = UViMDecoder(UViMModel.from_pretrained(args.model, subfolder="stage1"), self.processor)

    def curve(self, name: str, settings: dict, callbacks: list) -> list[dict[str, float]]:
        """Step and metrics of each evaluation. The model of each evaluation stays in the run's folder."""
        folder = Path(self.args.work_dir) / name.replace(" ", "-")
        config = {
            **TUNE_DEFAULTS,
            "reward_weights": [1.0, 0.0],
            "learning_rate": self.args.learning_rate,
            "max_steps": self.args.steps,
            "eval_on_start": True,
            "eval_steps": self.args.eval_steps,
            "save_strategy": "steps",
            "save_steps": self.args.eval_steps,
            "save_total_limit": None,
            "save_only_model": True,
            "seed": self.args.seed,
            **settings,
        }
        recorded = {
            **config,
            "acceptable_loss": self.args.acceptable_loss,
            **{f"data.{name}": value for name, value in asdict(self.data_args).items()},
            "started_from": weights_of(Path(self.args.model)),
        }
        if not is_trained(folder, recorded):
            config |= {"output_dir": str(folder), "logging_steps": self.args.eval_steps}
            config |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
            trainer = VisionRewardTrainer(
                VisionEncoderDecoderModel.from_pretrained(self.args.model),
                [ColorfulnessReward(), fidelity_reward],
                VisionRewardConfig(**config),
                train_dataset=self.train_dataset,
                eval_dataset=self.eval_dataset,
                processing_class=self.processor,
                compute_metrics=colorization_metrics,
                callbacks=callbacks,
                completion_decoder=self.decoder,
            )
            trainer.train()
            evaluations = [entry for entry in trainer.state.log_history if "eval_psnr" in entry]
            curve = [{"step": e["step"]} | {k: round(e[f"eval_{k}"], 4) for k in SHOWN} for e in evaluations]
            (folder / "curve.json").write_text(json.dumps(curve))
            record(trainer, recorded)
        return json.loads((folder / "curve.json").read_text())

    @torch.no_grad()
    def pictures(self, name: str, step: int, images: list[Image.Image]) -> list[Image.Image]:
        """How the model of a run colours photos after `step` steps, decoded greedily."""
        folder = Path(self.args.work_dir) / name.replace(" ", "-") / f"checkpoint-{step}"
        model = VisionEncoderDecoderModel.from_pretrained(folder if step else self.args.model)
        inputs = self.processor(images=images)
        completions = sample(
            model, inputs["pixel_values"], max_completion_length=self.processor.code_len, do_sample=False
        )
        return self.decoder(completions.completion_ids, inputs)


def main(args: HackingArguments, data_args: DataArguments) -> dict:
    torch.set_num_threads(args.threads)
    runs = Runs(args, data_args)
    variants: dict[str, tuple[dict, list]] = {"reward alone": ({}, [RewardMetricDivergenceCallback("psnr")])}
    variants |= {f"beta {beta:g}": ({"beta": beta}, []) for beta in args.betas}
    variants |= {f"fidelity {weight:g}": ({"reward_weights": [1.0, weight]}, []) for weight in args.fidelity_weights}
    often = max(1, args.eval_steps // 10)
    careful = {"learning_rate": args.careful_learning_rate, "eval_steps": often, "save_steps": often}
    variants["stopped"] = (careful, [StopBelow(args.acceptable_loss)])
    curves = {name: runs.curve(name, *how) for name, how in variants.items()}

    truth = [row["image"].convert("RGB") for row in runs.eval_dataset]
    of_photos = colorization_metrics(runs.processor.get_references([{"image": image} for image in truth]))
    settings = {**asdict(args), **asdict(data_args)}
    results = {
        "settings": {name: value for name, value in settings.items() if name not in PATHS},
        "num_images": {"train": len(runs.train_dataset), "validation": len(runs.eval_dataset)},
        "photos": {name: round(of_photos[name], 4) for name in SHOWN if name in of_photos},
        "curves": curves,
    }
    write_json(results, args.output)
    pictures_dir = Path(args.pictures_dir)
    pictures_dir.mkdir(parents=True, exist_ok=True)
    plot(results).savefig(pictures_dir / "reward_hacking_curves.png", dpi=110)
    _strips(runs, curves, truth[:5]).save(pictures_dir / "reward_hacking.png")
    print(table(results))
    return results


def _strips(runs: Runs, curves: dict[str, list[dict]], photos: list[Image.Image]) -> Image.Image:
    """A row for each photo: MLE; the reward alone early, half-way and at the end; the final models of the other runs."""
    alone = [point["step"] for point in curves["reward alone"]]
    shown = {"MLE": ("reward alone", 0)}
    shown |= {
        f"step {step}": ("reward alone", step) for step in (alone[len(alone) // 6], alone[len(alone) // 2], alone[-1])
    }
    shown |= {name: (name, curve[-1]["step"]) for name, curve in curves.items() if name != "reward alone"}
    columns = {title: runs.pictures(*what, photos) for title, what in shown.items()}
    references = runs.processor.get_references([{"image": photo} for photo in photos])
    strips = [
        draw(photo, {title: made[index] for title, made in columns.items()}, references[index], width=128)
        for index, photo in enumerate(photos)
    ]
    return draw_grid(strips, columns=1, gap=0)


def plot(results: dict) -> plt.Figure:
    """Colourfulness and PSNR of held-out photos over the steps, one line for each run."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (name, title) in zip(
        axes, (("colorfulness", "colourfulness (the reward)"), ("psnr", "PSNR in dB")), strict=True
    ):
        for variant, curve in results["curves"].items():
            axis.plot([p["step"] for p in curve], [p[name] for p in curve], label=variant)
        axis.set(title=title, xlabel="steps")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(results["photos"]["colorfulness"], color="grey", linestyle=":", label="true photos")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def table(results: dict) -> str:
    """Where each run ends, as Markdown."""
    ends = {"MLE": results["curves"]["reward alone"][0]}
    ends |= {name: curve[-1] for name, curve in results["curves"].items()}
    rows = [[name, str(end["step"]), *_colours(end), f"{end['psnr']:.1f}"] for name, end in ends.items()]
    rows.append(["true photos", "", *_colours(results["photos"]), ""])
    return markdown(["", "steps", "vivid share", "hue entropy", "colourfulness", "PSNR"], rows)


def _colours(metrics: dict[str, float]) -> list[str]:
    return [f"{metrics[key]:.3f}" for key in ("vivid_fraction", "hue_entropy", "colorfulness")]


if __name__ == "__main__":
    main(*TrlParser((HackingArguments, DataArguments)).parse_args_and_config())
