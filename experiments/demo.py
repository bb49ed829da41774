"""MLE, more MLE, and reward tuning: a detector before and after, in two situations, from MLE models that come along.

    python experiments/demo.py                 # or: make demo
    python experiments/demo.py --full true     # or: make demo-full; makes the MLE models anew first, an hour and a half
    python experiments/demo.py --smoke true    # every line of it in under a minute, on numbers that show nothing

Scenes of handwritten digits, none of which is in both training and test. In one situation they are small, many and
noisy, in the other half of the training boxes are missing; see detection_scenes.py. In each, the MLE model is tuned for
mAP, and, as a control, MLE goes on for longer than that takes, with the learning rate that suited it best on validation.
Writes runs/demo/: the table, one picture, the models. docs/results.md has the whole experiment.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from detection_measures import Measured
from detection_scenes import Situation
from detection_study import RESULTS, ROWS, DetectionStudy, StudyArguments
from PIL import Image
from pretrain_detection import pretrain
from runs import cost
from trl import TrlParser

from vision_rl.drawing import draw_grid
from vision_rl.tasks.detection import draw


SITUATIONS: tuple[Situation, ...] = ("crowded", "incomplete")
COMPARED = ("mle", "mle_continued", "tuned_map")
SHORT = {  # of the study's columns
    "map_confidence": "mAP",
    "map_likelihood": "mAP, likelihood",
    "ar_100": "AR@100",
    "greedy_map_reward": "reward, greedy",
    "sampled_map_reward": "sampled",
    "boxes_per_image": "boxes",
}


@dataclass
class DemoArguments:
    output_dir: str = "runs/demo"
    seed: int = 0
    steps: int = 150  # of tuning; the control makes three times as many
    num_train_images: int = 15_000
    num_eval_images: int = 500
    threads: int = 1  # two hardly help models this small, and hinder where the cores are shared
    full: bool = False
    smoke: bool = False

    def __post_init__(self):
        if self.smoke:
            self.output_dir, self.steps, self.num_train_images, self.num_eval_images = "runs/smoke", 2, 64, 8


def main(demo: DemoArguments) -> None:
    out = Path(demo.output_dir)
    torch.set_num_threads(demo.threads)
    tables: dict[str, dict] = {}
    pictures: list[Image.Image] = []
    for situation in SITUATIONS:
        mle = out / situation / "mle" if demo.full else None
        if mle is not None:
            pretrain(situation, mle)
        study = DetectionStudy(
            StudyArguments(
                situation=situation,
                steps=demo.steps,
                num_train_images=demo.num_train_images,
                num_eval_images=demo.num_eval_images,
                num_resamples=0,
                checkpoint=None if mle is None else str(mle),
            )
        )
        rates = json.loads((RESULTS / f"detection-{situation}.json").read_text())["learning_rates"]
        measured: dict[str, Measured] = {}
        tables[situation] = {}
        for row in COMPARED:
            folder = study.checkpoint if row == "mle" else out / situation / row
            if row != "mle":
                print(f"\n{situation}: {ROWS[row]}", flush=True)
                study.train(row, rates[row]["chosen"], demo.seed, folder)
            columns, measured[row] = study.measure(folder, "test")
            tables[situation][row] = {**cost(folder), **{name: round(float(columns[name][0]), 4) for name in SHORT}}
        pictures += before_and_after(study, measured, situation)
    (out / "results.json").write_text(json.dumps({"settings": vars(demo), "results": tables}, indent=1) + "\n")
    draw_grid(pictures, columns=6).save(out / "before_after.png")
    show(tables, demo)
    print(f"\nWritten: {out}/results.json, {out}/before_after.png and the models.")


def show(tables: dict[str, dict], demo: DemoArguments) -> None:
    for situation, rows in tables.items():
        print(f"\n{situation}: {demo.num_eval_images} test images, seed {demo.seed}\n")
        print(" " * 14 + "".join(f"{name:>17}" for name in SHORT.values()) + f"{'seconds':>9}")
        for row, values in rows.items():
            numbers = "".join(f"{values[name]:17.3f}" for name in SHORT)
            print(f"{ROWS[row]:14}{numbers}{values['seconds']:9}")


def before_and_after(study: DetectionStudy, measured: dict[str, Measured], situation: Situation) -> list[Image.Image]:
    """The first six test images, with what MLE and what the tuned model found."""
    scenes = study.scenes("test")
    scenes = scenes.select(range(min(6, len(scenes))))
    pictures = []
    for row in ("mle", "tuned_map"):
        answers, truth = measured[row].boxes["likelihood"], measured[row].references
        pictures += [
            draw(scene["image"], answers[i], truth[i], scale=6, title=f"{situation}, {ROWS[row]}")
            for i, scene in enumerate(scenes)
        ]
    return pictures


if __name__ == "__main__":
    main(*TrlParser((DemoArguments,)).parse_args_and_config())
