"""Figure 5 of the paper, of models before and after tuning: what do their samples hold?

    python experiments/samples_study.py

Needs the models of `detection_study.py` for incomplete labels and for hard scenes, and of `scene_captioning_study.py`, first
seed, in their work_dirs.
A thousand samples of each test image are drawn from both models and scored by the reward that was tuned for. `make tables`
draws the charts.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import detection_study
import scene_captioning_study
import tables
import torch
from caption_scenes import captioned_scenes
from detection_scenes import Situation
from runs import commit
from study import Study
from trl import TrlParser

from vision_rl.analysis import figures, sample_rewards


RESULTS = Path(__file__).parent / "results"
SHOWN = (10, 100, 1000)  # of best and likeliest of n, in the table


@dataclass
class SamplesArguments:
    num_images: int = 64
    num_samples: int = 1000
    detection_work_dir: str = "runs/results"
    captions_work_dir: str = "runs/scene-captions"
    output: str = str(RESULTS / "samples.json")
    threads: int = 1


class Ground(NamedTuple):
    """An experiment, the row that was tuned and its learning rate, and test images."""

    study: Study
    row: str
    learning_rate: float
    images: Any


def boxes(args: SamplesArguments, situation: Situation) -> Ground:
    known = tables.read_json(RESULTS / f"detection-{situation}.json")
    options = {"work_dir": args.detection_work_dir, "steps": known["settings"]["steps"]}
    study = detection_study.DetectionStudy(detection_study.StudyArguments(situation=situation, **options))
    images = study.scenes("test").select(range(args.num_images))
    return Ground(study, "tuned_map", known["learning_rates"]["tuned_map"]["chosen"], images)


def captions(args: SamplesArguments) -> Ground:
    known = tables.read_json(RESULTS / "scene-captions.json")
    study = scene_captioning_study.SceneCaptioningStudy(
        scene_captioning_study.StudyArguments(work_dir=args.captions_work_dir)
    )
    rate = known["learning_rates"]["tuned"]["chosen"]
    return Ground(study, "tuned_without_end", rate, captioned_scenes("test", args.num_images))


GROUNDS = {
    "incomplete labels, mAP": partial(boxes, situation="incomplete"),
    "hard scenes, mAP": partial(boxes, situation="hard"),
    "captions of scenes, CIDEr": captions,
}


def samples(ground: Ground, args: SamplesArguments) -> dict[str, dict]:
    """What `RewardSamples.summary` says of the model that tuning started from, and of the tuned one; first seed."""
    seed = ground.study.seeds[0]
    start = ground.study.start(ground.row, seed)
    folders = {"MLE": start, "tuned": ground.study.trained(ground.row, ground.learning_rate, seed)}
    config = ground.study.config(ground.row, ground.learning_rate, seed)
    config |= {"output_dir": str(ground.study.folder / "samples"), "use_cpu": True, "report_to": "none"}
    config |= {"per_device_eval_batch_size": 16}
    found = {}
    for name, folder in folders.items():
        trainer = ground.study.make_trainer(ground.row, config, folder)
        found[name] = sample_rewards(trainer, ground.images, args.num_samples).summary()
    return found


def main(args: SamplesArguments) -> dict:
    torch.set_num_threads(args.threads)
    models = {name: samples(make(args), args) for name, make in GROUNDS.items()}
    settings = {"num_images": args.num_images, "num_samples": args.num_samples}
    results = {"commit": commit(), "settings": settings, "models": models}
    tables.write_json(results, args.output)
    print(table(results))
    return results


def sample_charts(results: dict) -> dict[str, str]:
    """Figure 5 as SVG: of each experiment what a sample at each quantile earns, the best of n, the likeliest of n."""
    return {
        f"{name.split(',')[0].replace(' ', '-')}-{what}": draw(models)
        for name, models in results["models"].items()
        for what, draw in (
            ("quantiles", figures.quantile_chart),
            ("best-of-n", figures.best_of_n_chart),
            ("likeliest-of-n", figures.likeliest_of_n_chart),
        )
    }


def table(results: dict) -> str:
    """What a sample, the greedy answer, and the best and the likeliest of n samples earn, as Markdown."""
    rows = []
    for ground, models in results["models"].items():
        for name, summary in models.items():
            numbers = [summary["sampled"]["mean"], summary["greedy"]["mean"]]
            for key in ("best_of_n", "likeliest_of_n"):
                at = dict(zip(summary[key]["n"], summary[key]["mean"], strict=True))
                numbers += [at[n] for n in SHOWN if n in at]
            rows.append([f"{ground}: {name}", *(f"{number:.2f}" for number in numbers)])
    sizes = [n for n in SHOWN if n <= results["settings"]["num_samples"]]
    titles = [f"{what} of {n}" for what in ("best", "likeliest") for n in sizes]
    return tables.markdown(["reward", "a sample", "greedy", *titles], rows)


if __name__ == "__main__":
    main(*TrlParser((SamplesArguments,)).parse_args_and_config())
