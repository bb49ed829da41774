"""MLE, better decoding, more MLE and reward tuning, compared where imitation and the goal differ.

    python experiments/demo.py                 # or: make demo
    python experiments/demo.py --full true     # or: make demo-full; makes the MLE models anew first
    python experiments/demo.py --smoke true    # every line of it in under a minute, on numbers that show nothing

The images are scenes of handwritten digits; no digit is in both training and test. The MLE models come with the repository.
There are two parts:

* incomplete: half of the training boxes are missing. A detector is tuned for mAP.
* captions: each scene has five true sentences, and nothing in the image favours one. A captioner is tuned for CIDEr.

The controls continue MLE for longer than tuning takes, with the learning rate that was best for it on validation. The MLE
models are also decoded in the way that suits them best. Writes runs/demo/: the tables, a picture of each part, the models,
and a page report.html for each tuned model. docs/results.md has the whole experiments.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import detection_study
import scene_captioning_study
import torch
from caption_scenes import captioned_scenes
from detection_measures import Measured
from PIL import Image
from pretrain_detection import pretrain
from runs import cost
from study import Study
from tables import read_json
from trl import TrlParser

from vision_rl.analysis import Answers, Comparison, write_report
from vision_rl.drawing import draw_grid
from vision_rl.tasks import captioning, detection


RESULTS = Path(__file__).parent / "results"
NUM_DRAWN = 4


@dataclass
class DemoArguments:
    output_dir: str = "runs/demo"
    seed: int = 0
    steps: int = 200  # of tuning; the controls take more steps and more time
    num_train_images: int = 15_000
    num_eval_images: int = 500
    threads: int = 1  # a second thread hardly helps models this small, and slows them where the cores are shared
    full: bool = False
    smoke: bool = False

    def __post_init__(self):
        if self.smoke:
            self.output_dir, self.steps, self.num_train_images, self.num_eval_images = "runs/smoke", 2, 64, 8


class Line(NamedTuple):
    """A line of the table: a model, and how it is decoded."""

    title: str
    row: str  # the row of the study that has the model
    how: Mapping[str, Any] = {}  # options of the study's `measure`


@dataclass
class Piece:
    """A part of the demo: an experiment's study with fewer steps."""

    study: Study
    checkpoint: Path  # the MLE model
    rates: dict[str, float]  # the learning rate of each row that is trained
    lines: list[Line]
    columns: dict[str, str]
    draw: Callable[[dict], list[Image.Image]]  # from the predictions of each line
    compare: Callable[[dict, dict], Comparison]  # MLE with the tuned model, from predictions and numbers of each line


def incomplete_labels(demo: DemoArguments, out: Path) -> Piece:
    mle = out / "mle" if demo.full else None
    if mle is not None:
        pretrain("incomplete", mle)
    known = read_json(RESULTS / "detection-incomplete.json")
    study = detection_study.DetectionStudy(
        detection_study.StudyArguments(
            situation="incomplete",
            steps=demo.steps,
            num_train_images=demo.num_train_images,
            num_eval_images=demo.num_eval_images,
            num_resamples=0,
            checkpoint=None if mle is None else str(mle),
        )
    )
    threshold = known["thresholds"]["mle"]["chosen"]
    lines = [
        Line("MLE", "mle"),
        Line(f"MLE, absent above {threshold}", "mle", {"stop_threshold": threshold}),
        Line("MLE, absence forbidden", "mle", {"stop_threshold": 1.0}),
        Line("MLE continued", "mle_continued"),
        Line(f"MLE continued, above {threshold}", "mle_continued", {"stop_threshold": threshold}),
        Line("tuned for mAP", "tuned_map"),
    ]
    columns = {
        "map_class": "mAP by class",
        "map_likelihood": "by likelihood",
        "map_confidence": "by confidence",
        "ar_100": "AR@100",
        "f1": "F1",
        "boxes_per_image": "boxes",
    }

    def draw(found: dict[str, Measured]) -> list[Image.Image]:
        scenes = study.scenes("test").select(range(min(NUM_DRAWN, demo.num_eval_images)))
        return [
            detection.draw(
                scene["image"], of_line.boxes["likelihood"][place], of_line.references[place], width=288, title=title
            )
            for title, of_line in ((title, found[title]) for title in ("MLE", "tuned for mAP"))
            for place, scene in enumerate(scenes)
        ]

    def compare(found: dict[str, Measured], numbers: dict[str, dict]) -> Comparison:
        mle, tuned = (
            Answers(
                found[title].boxes["likelihood"],
                detection.draw,
                found[title].per_image["greedy_map_reward"],
                {columns[name]: value for name, value in numbers[title].items() if name in columns},
            )
            for title in ("MLE", "tuned for mAP")
        )
        return Comparison(study.scenes("test")["image"], found["MLE"].references, tuned, mle, "mAP reward")

    rates = chosen_rates(read_json(RESULTS / "detection-short.json"))  # of trainings of 200 steps, as these are
    return Piece(study, study.checkpoint, rates, lines, columns, draw, compare)


def captions_of_scenes(demo: DemoArguments, out: Path) -> Piece:
    known = read_json(RESULTS / "scene-captions.json")
    arguments = scene_captioning_study.StudyArguments(
        seeds=[demo.seed],
        steps=demo.steps,
        control_steps=3 * demo.steps,
        num_eval_images=min(100, demo.num_eval_images),
        num_test_images=demo.num_eval_images,
        work_dir=str(out),
    )
    if demo.full:
        mle = scene_captioning_study.SceneCaptioningStudy(arguments).trained(
            "mle", arguments.mle_learning_rate, demo.seed
        )
    else:
        mle = scene_captioning_study.CHECKPOINT
    study = scene_captioning_study.SceneCaptioningStudy(replace(arguments, checkpoint=str(mle)))
    best = scene_captioning_study.best_decoding(known)
    lines = [
        Line("MLE", "mle"),
        Line(f"MLE, {best}", "mle", {"decoding": best}),
        Line("MLE continued", "mle_continued"),
        Line(f"MLE continued, {best}", "mle_continued", {"decoding": best}),
        Line("tuned for CIDEr", "tuned_without_end"),
    ]
    columns = {
        "cider": "CIDEr",
        "bleu_4": "BLEU-4",
        "rouge_l": "ROUGE-L",
        "sampled_reward": "sampled",
        "num_words": "words",
        "forms": "forms",
        "milliseconds": "ms an image",
    }

    def draw(found: dict[str, list[str]]) -> list[Image.Image]:
        scenes = captioned_scenes("test", min(NUM_DRAWN, demo.num_eval_images))
        return [
            captioning.draw(
                scene["image"],
                {
                    "MLE": found["MLE"][place],
                    "more": found["MLE continued"][place],
                    "tuned": found["tuned for CIDEr"][place],
                },
                scene["captions"],
            )
            for place, scene in enumerate(scenes)
        ]

    def compare(found: dict[str, list[str]], numbers: dict[str, dict]) -> Comparison:
        rows = list(captioned_scenes("test", demo.num_eval_images))
        images, captions = ([row[name] for row in rows] for name in ("image", "captions"))
        mle, tuned = (
            Answers(
                found[title],
                captioning.draw,
                captioning.coco_captions(found[title], captions)["per_caption_cider"],
                {columns[name]: value for name, value in numbers[title].items() if name in columns},
            )
            for title in ("MLE", "tuned for CIDEr")
        )
        return Comparison(images, captions, tuned, mle, "CIDEr")

    rates = chosen_rates(known) | {"tuned_without_end": chosen_rates(known)["tuned"]}
    return Piece(study, mle, rates, lines, columns, draw, compare)


PIECES = {"incomplete": incomplete_labels, "captions": captions_of_scenes}


def chosen_rates(results: dict) -> dict[str, float]:
    """For each row that was trained, the learning rate that validation chose in the whole experiment."""
    return {row: tried["chosen"] for row, tried in results["learning_rates"].items()}


def main(demo: DemoArguments) -> None:
    out = Path(demo.output_dir)
    torch.set_num_threads(demo.threads)
    results: dict[str, dict] = {}
    pictures: list[Path] = []
    pages: list[Path] = []
    for name, make in PIECES.items():
        piece = make(demo, out / name)
        folders = {"mle": piece.checkpoint}
        found: dict[str, Any] = {}
        results[name] = {}
        for line in piece.lines:
            if line.row not in folders:
                folders[line.row] = out / name / line.row
                print(f"\n{name}: {line.title}", flush=True)
                piece.study.train(line.row, piece.rates[line.row], demo.seed, folders[line.row])
            columns, found[line.title] = piece.study.measure(folders[line.row], "test", **line.how)
            numbers = {column: round(float(columns[column][0]), 4) for column in piece.columns if column in columns}
            results[name][line.title] = {**numbers, **cost(folders[line.row])}
        pictures.append(out / f"{name}.png")
        draw_grid(piece.draw(found), columns=NUM_DRAWN).save(pictures[-1])
        pages.append(write_report(folders[piece.lines[-1].row], piece.compare(found, results[name])))
        show(name, piece, results[name], demo)
    (out / "results.json").write_text(json.dumps({"settings": vars(demo), "results": results}, indent=1) + "\n")
    print(f"\nWritten: {', '.join(map(str, [out / 'results.json', *pictures]))} and the models.")
    print(f"The largest gains and losses, in a browser: {', '.join(map(str, pages))}")


def show(name: str, piece: Piece, rows: dict[str, dict], demo: DemoArguments) -> None:
    print(f"\n{name}: {demo.num_eval_images} test images, seed {demo.seed}\n")
    print(" " * 30 + "".join(f"{title:>15}" for title in piece.columns.values()) + f"{'seconds':>9}")
    for title, values in rows.items():
        numbers = "".join(f"{values[column]:15.3f}" if column in values else " " * 15 for column in piece.columns)
        print(f"{title:30}{numbers}{values['seconds']:9}")


if __name__ == "__main__":
    main(*TrlParser((DemoArguments,)).parse_args_and_config())
