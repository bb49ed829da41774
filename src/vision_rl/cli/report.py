"""`vision-rl report RUN_DIR`: the page of a run, with answers of its model beside those of the one that it started from."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vision_rl import VisionRewardTrainer
from vision_rl.analysis.answers import Answers, Comparison, answers_of
from vision_rl.analysis.report import write_report
from vision_rl.cli.arguments import require_positive
from vision_rl.cli.data import rows_to_look_at, training_rows
from vision_rl.cli.judging import judging_trainer
from vision_rl.cli.reading import Read


def report_of_log(folder: Path, output: str | None = None) -> Callable[[], None]:
    """Make the report of a run whose task or data nobody has named, from what its folder says by itself."""
    why = "It shows no answers, as the task or data is not known: `vision-rl report --help` lists the options that name them."
    return lambda: _say(write_report(folder, output=output), why)


def report(given: Read, folder: Path) -> Callable[[], None]:
    args, _ = given.own
    require_positive(args, "batch_size")
    if args.num_images < 2:
        raise ValueError(f"num_images must be at least 2; it is {args.num_images}.")
    _make_place(args.output_file, folder)
    rows = rows_to_look_at(given, args.split)
    if rows is None:
        return report_of_log(folder, args.output_file)
    rows = rows.select(range(min(args.num_images, len(rows))))
    counted = None
    if args.reward or len(given.task.REWARDS) == 1:  # some rewards take counts from training rows
        counted = training_rows(given)
        counted = rows if counted is None else counted
    scratch = tempfile.TemporaryDirectory(prefix="vision_rl")  # Trainer wants a folder; nothing is written
    models = filter(None, (args.before, args.model))
    trainers = {model: judging_trainer(given, model, scratch.name, rows, counted) for model in models}

    def run() -> None:
        with scratch:
            _report(trainers, args, folder, rows)

    return run


def _make_place(output: str | None, folder: Path) -> None:
    """The folder of the page, before models are loaded and answer."""
    path = folder / "report.html" if output is None else Path(output)
    if path.is_dir():
        raise IsADirectoryError(f"output_file must name the file of the page, but {path} is a folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"The page cannot be written to {path}: give another output_file.")


def _report(trainers: dict[str, Any], args: Any, folder: Path, rows: Any) -> None:
    answers: dict[str, Answers] = {}
    references, name = None, ""
    for model, trainer in trainers.items():
        print(f"{model} answers {len(rows)} images", flush=True)
        answers[model], references = answers_of(trainer, rows)
        name = " + ".join(trainer.reward.names) if isinstance(trainer, VisionRewardTrainer) else ""
    before = None if args.before is None else answers[args.before]
    comparison = Comparison(rows["image"], references, answers[args.model], before, name)
    _say(write_report(folder, comparison, args.output_file))


def _say(path: Path, why: str = "") -> None:
    print(f"Written to {path}: open this file in a browser." + (f" {why}" if why else ""))
