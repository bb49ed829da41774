"""The commands: each reads its options and gives back what is then to be run. Torch is loaded once they are read."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from vision_rl.cli import arguments as kinds
from vision_rl.cli.parser import read_config
from vision_rl.cli.reading import COMMAND_FILE, read, read_training
from vision_rl.task import names_a_task


Run = Callable[[], None]


def prepare(arguments: Sequence[str]) -> Run:
    """Make a data set folder, images inside, that the other commands and `load_dataset` take, of any source."""
    given = read("prepare", arguments, (kinds.PrepareArguments, kinds.DataArguments), prepare.__doc__)
    from vision_rl.cli import preparation

    return preparation.prepare(given)


def stage1(arguments: Sequence[str]) -> Run:
    """Stage I of a task with codes: learn to write dense maps as codes, and to read them back (UViM)."""
    given = read_training("stage1", arguments, stage1.__doc__)
    from vision_rl.cli import training

    return training.stage1(given)


def mle(arguments: Sequence[str]) -> Run:
    """Step 1: imitate the labels, from new weights or from those of another model."""
    given = read_training("mle", arguments, mle.__doc__)
    from vision_rl.cli import training

    return training.mle(given)


def tune(arguments: Sequence[str]) -> Run:
    """Step 2: sample answers, score them, and make the better ones more likely (REINFORCE)."""
    given = read_training("tune", arguments, tune.__doc__)
    from vision_rl.cli import training

    return training.tune(given)


def evaluate(arguments: Sequence[str]) -> Run:
    """Answer the images of a data set and measure the answers: the row of the paper's table, and COCO's result files."""
    given = read("eval", arguments, (kinds.EvalArguments, kinds.DataArguments), evaluate.__doc__)
    from vision_rl.cli import evaluation

    return evaluation.evaluate(given)


def predict(arguments: Sequence[str]) -> Run:
    """Answer images of your own: the answers in the form of the field, and drawn into the images."""
    given = read("predict", arguments, (kinds.PredictArguments,), predict.__doc__, with_options=False)
    from vision_rl.cli import prediction

    return prediction.predict(given)


def analyze(arguments: Sequence[str]) -> Run:
    """Look at what a model's samples earn, before and after tuning, and at how noisy the gradients of tuning are."""
    given = read("analyze", arguments, (kinds.AnalyzeArguments, kinds.DataArguments), analyze.__doc__)
    from vision_rl.cli import analysis

    return analysis.analyze(given)


def report(arguments: Sequence[str]) -> Run:
    """Make one page of a run's folder, RUN_DIR: whether it worked, answers before and after, curves, settings."""
    own, command = (kinds.ReportArguments, kinds.DataArguments), list(arguments)
    if {"-h", "--help"} & set(command):
        read("report", command, own, report.__doc__)
    if not command or command[0].startswith("-"):
        raise ValueError("vision-rl report needs the folder of a run before its options: vision-rl report runs/map.")
    folder = Path(command.pop(0))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    if "--config" not in command and (folder / COMMAND_FILE).is_file():
        command += ["--config", str(folder / COMMAND_FILE)]
    of_stage1 = read_config(command).get("command") == "stage1"  # whose model answers no image
    if of_stage1 or (not command and not names_a_task(str(folder))):
        from vision_rl.cli.report import report_of_log

        parser = argparse.ArgumentParser(
            prog="vision-rl report RUN_DIR", description="Only the log of this run can be shown."
        )
        parser.add_argument("--output_file")
        parser.add_argument("--config")
        return report_of_log(folder, parser.parse_args(command).output_file)
    if not any(part.split("=")[0] == "--model" for part in command):
        command += ["--model", str(folder)]
    given = read("report", command, own, report.__doc__)
    from vision_rl.cli import report as reports

    return reports.report(given, folder)


def convert_uvim(arguments: Sequence[str]) -> Run:
    """Convert a checkpoint of gs://big_vision/uvim, of stage I or II, so that from_pretrained loads it."""
    parser = argparse.ArgumentParser(prog="vision-rl convert-uvim", description=convert_uvim.__doc__)
    parser.add_argument("checkpoint", metavar="FILE.npz")
    parser.add_argument("output_dir", metavar="OUT_DIR")
    options = parser.parse_args(arguments)
    from vision_rl.models import uvim

    model = uvim.convert_uvim(options.checkpoint, options.output_dir)
    count = sum(parameter.numel() for parameter in model.parameters())
    return lambda: print(f"{options.output_dir}: {type(model).__name__}, {count / 1e6:.1f} M parameters")


def env(arguments: Sequence[str]) -> Run:
    """Print the versions and devices that a report of a bug needs."""
    argparse.ArgumentParser(prog="vision-rl env", description=env.__doc__).parse_args(arguments)
    from vision_rl.cli import environment

    return environment.print_environment
