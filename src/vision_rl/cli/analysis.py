"""`vision-rl analyze`: the paper's figures 5 and 6 of a model and its run, and the noise of its gradients, as SVG and JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vision_rl import VisionRewardTrainer
from vision_rl.analysis import curves, figures
from vision_rl.analysis.gradient_noise import gradient_noise
from vision_rl.analysis.noise import GradientNoise, images_text
from vision_rl.analysis.reward_samples import sample_rewards
from vision_rl.cli import building
from vision_rl.cli.arguments import require_positive
from vision_rl.cli.data import require, rows_to_look_at, split_to_look_at, training_rows
from vision_rl.cli.judging import judging_trainer
from vision_rl.cli.reading import Read


def analyze(given: Read) -> Callable[[], None]:
    args, data = given.own
    if args.model is None:
        raise ValueError("--model is needed: the output_dir of `vision-rl mle` or `vision-rl tune`.")
    require_positive(args, "num_images", "num_samples", "completions_at_once", "batch_size")
    if args.noise and (args.num_batches < 4 or args.num_generations < 2):
        raise ValueError(
            f"--noise needs num_batches of at least 4 and num_generations of at least 2; they are {args.num_batches} and "
            f"{args.num_generations}."
        )
    folder = Path(args.output_dir or building.folder_of(args.model) / "analysis")
    folder.mkdir(parents=True, exist_ok=True)
    rows = None if args.noise else rows_to_look_at(given, args.split)
    train = training_rows(given)
    if args.noise:
        train = require(train, "to take gradients on", data, given.task)
    else:
        rows = require(rows, f"of the split {split_to_look_at(data, args.split)}", data, given.task)
        rows = rows.select(range(min(args.num_images, len(rows))))
    counted = train if train is not None else rows  # from which some rewards take counts
    options = {"num_generations": args.num_generations, "seed": args.seed}
    trainers: dict[str, Any] = {
        name: judging_trainer(given, model, str(folder), rows, counted, train if args.noise else None, **options)
        for name, model in models_of(args).items()
    }
    if args.noise:
        return lambda: _noise(trainers, args, folder)
    return lambda: _samples(trainers, args, rows, folder)


def models_of(args: Any) -> dict[str, str]:
    """The models by what a figure calls them."""
    return {"model": args.model} if args.before is None else {"before": args.before, "after": args.model}


def _samples(trainers: dict[str, VisionRewardTrainer], args: Any, rows: Any, folder: Path) -> None:
    summaries = {}
    for name, trainer in trainers.items():
        told = _teller(name, len(rows), "images")
        samples = sample_rewards(trainer, rows, args.num_samples, args.completions_at_once, told)
        summaries[name] = {"path": models_of(args)[name], "seed": args.seed, **samples.summary()}
    written = {
        "quantiles.svg": figures.quantile_chart(summaries),
        "best_of_n.svg": figures.best_of_n_chart(summaries),
        "likeliest_of_n.svg": figures.likeliest_of_n_chart(summaries),
    }
    _write(folder / "samples.json", {"rewards": next(iter(trainers.values())).reward.names, "models": summaries})
    log = curves.read_log(Path(args.model))
    if log:
        _write(folder / "curves.json", curves.reward_and_metrics(log))
        chart = curves.reward_chart(log)
        written |= {} if chart is None else {"reward.svg": chart}
        written |= {f"metric_{place}.svg": chart for place, chart in enumerate(curves.metric_charts(log))}
    for file, chart in written.items():
        (folder / file).write_text(chart, encoding="utf-8")
    print(samples_table(summaries))
    print(f"Written to {folder}: samples.json, {'curves.json, ' if log else ''}{', '.join(written)}.")


def _noise(trainers: dict[str, VisionRewardTrainer], args: Any, folder: Path) -> None:
    noises = {
        name: gradient_noise(trainer, args.num_batches, _teller(name, args.num_batches, "batches"))
        for name, trainer in trainers.items()
    }
    models = {
        name: {
            "path": models_of(args)[name],
            "seed": args.seed,
            "num_generations": args.num_generations,
            "estimators": [noise.summary() for noise in found],
        }
        for name, found in noises.items()
    }
    _write(folder / "noise.json", {"rewards": next(iter(trainers.values())).reward.names, "models": models})
    for name, found in noises.items():
        print(noise_table(name, found))
    print(f"Written to {folder}: noise.json.")


def samples_table(summaries: dict[str, dict[str, Any]]) -> str:
    """What a sample, the greedy answer, the likeliest and the best of all samples earn, as Markdown."""
    count = next(iter(summaries.values()))["samples"]
    lines = [f"| reward | sampled | greedy | likeliest of {count} | best of {count} |", "|---|---:|---:|---:|---:|"]
    for name, summary in summaries.items():
        means = [summary["sampled"]["mean"], summary["greedy"]["mean"]]
        means += [summary[key]["mean"][-1] for key in ("likeliest_of_n", "best_of_n")]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    return "\n".join(lines)


def noise_table(name: str, noises: list[GradientNoise]) -> str:
    """A line an estimator, as Markdown: with so many images, a step is as much signal as noise."""
    first = noises[0]
    head = f"| {name}: {first.batches} batches of {first.images} images | signal | noise of an image | images needed | 95 % |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for each in noises:
        low, high = each.images_needed_interval
        interval = f"{images_text(low)} to {images_text(high)}" if low is not None else "no signal seen"
        signal = f"{each.signal:.3g} ± {each.signal_error:.2g}"
        lines.append(f"| {each.name} | {signal} | {each.noise:.3g} | {images_text(each.images_needed)} | {interval} |")
    return "\n".join(lines)


def _teller(name: str, total: int, noun: str) -> Callable[[int], None]:
    """Return a function that prints the progress, some ten times in all."""
    said = [0]

    def tell(done: int) -> None:
        if done >= total or done - said[0] >= total / 10:
            said[0] = done
            print(f"{name}: {done} of {total} {noun}", flush=True)

    return tell


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
