"""Reads the command line of one command into its dataclasses, the task's options among them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vision_rl.cli.arguments import (
    AnalyzeArguments,
    DataArguments,
    EvalArguments,
    ModelArguments,
    NewTaskArguments,
    PredictArguments,
    ReportArguments,
    RunArguments,
    Stage1Arguments,
    TaskArguments,
    TuneArguments,
    require_positive,
)
from vision_rl.cli.parser import CommandParser, default_output_dir, stray, value_of
from vision_rl.cli.recipe import require_folders
from vision_rl.task import load_task, task_of


TRAINING: dict[str, tuple[type, str]] = {
    "stage1": (Stage1Arguments, "VisionMLEConfig"),
    "mle": (ModelArguments, "VisionMLEConfig"),
    "tune": (TuneArguments, "VisionRewardConfig"),
}

# Of the commands that look at what a training has made: what its config may say of them in `eval`.
LOOKING = (TaskArguments, EvalArguments, PredictArguments, AnalyzeArguments, ReportArguments, DataArguments)

COMMAND_FILE = "command.yaml"


@dataclass
class Read:
    """What a command was given: its task, the task's options, and one object of each of the command's own dataclasses."""

    task: Any
    named: str | None  # how it was called; None: told from the model
    options: Any
    own: tuple[Any, ...]
    training: Any = None
    given: dict[str, Any] = field(default_factory=dict)  # what was said, by option, as a recipe says it

    def evaluates(self) -> bool:
        """Whether a training evaluates while it runs, before the first step or later."""
        return self.training.eval_strategy != "no" or self.training.eval_on_start

    def record(self, command: str, folder: Path) -> None:
        """The command as a recipe in `folder`, which `--config` takes: to run it again, or to look at what it made."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {"command": command, **self.given}
        if self.training is not None:
            said["output_dir"] = str(self.training.output_dir)
        (folder / COMMAND_FILE).write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True))


def read(
    command: str,
    arguments: Sequence[str],
    own: Sequence[type],
    description: str | None,
    training: str | None = None,
    with_options: bool = True,
) -> Read:
    """Parse a command line and its `--config`; `--help` prints the help and ends the process.

    Args:
        command: its name.
        arguments: what follows it.
        own: the command's dataclasses.
        description: what it does.
        training: name of the trainer's config, `VisionMLEConfig` or `VisionRewardConfig`, whose options it takes too.
        with_options: whether it takes the options of the task.
    """
    arguments = [
        part for text in arguments for part in (text.split("=", 1) if text.startswith("--config=") else [text])
    ]
    asked = [flag for flag in ("--help", "-h", "--help_all") if flag in arguments]
    if asked:
        arguments = [argument for argument in arguments if argument not in asked]
    if arguments and not arguments[0].startswith("-"):  # before the task is asked for, which this may name
        raise ValueError(stray(command, arguments))
    name, model, revision = (value_of(command, arguments, option) for option in ("task", "model", "model_revision"))
    has_model = any(option.name == "model" for kind in own for option in fields(kind))
    kinds: list[type] = [TaskArguments if has_model else NewTaskArguments, *own]
    task = options_type = None
    if name is not None or not asked:
        task = load_task(name) if name is not None else _task_of(model, revision, command)
        if with_options:
            options_type = task.Options
            options_type._argument_group_name = f"Task: {task.__name__.rpartition('.')[2]}"
            kinds.append(options_type)
    if training is not None and (not asked or "--help_all" in asked):
        import vision_rl

        kinds.append(getattr(vision_rl, training))
    try:
        epilog = _epilog(command, training, task) if asked else ""
        of_evaluation = (*LOOKING, *([] if task is None else [task.Options]))
        parser = CommandParser(command, kinds, description or "", epilog, of_evaluation)
    except argparse.ArgumentError as error:
        raise ValueError(f"An option of the task has the name of another option: {error}. Rename it.") from error
    if training is not None and task is not None:
        parser.set_defaults(output_dir=default_output_dir(command, task.__name__.rpartition(".")[2]))
    if asked:
        parser.print_help()
        sys.exit(0)
    parsed = dict(zip(kinds, parser.parse(arguments), strict=True))
    options = None if options_type is None else parsed[options_type]
    if options is not None and DataArguments in parsed:
        from vision_rl.cli.data import require_one_source, with_categories

        require_positive(parsed[DataArguments], "max_train_rows", "max_eval_rows")
        require_one_source(parsed[DataArguments], options)
        options = with_categories(parsed[DataArguments], options)
    return Read(
        task,
        name,
        options,
        tuple(parsed[kind] for kind in own),
        None if training is None else parsed[kinds[-1]],
        parser.given,
    )


def read_training(command: str, arguments: Sequence[str], description: str | None = None) -> Read:
    """Read the options of `stage1`, `mle` or `tune`: model, data and run, with the trainer's config."""
    kind, config = TRAINING[command]
    return read(command, arguments, (kind, DataArguments, RunArguments), description, config)


def _task_of(model: str | None, revision: str | None, command: str) -> Any:
    if model is None:
        raise ValueError(f"vision-rl {command} needs a task: --task detection, or --task my_task.py for one of yours.")
    require_folders([model])
    return task_of(model, revision)


def _epilog(command: str, training: str | None, task: Any) -> str:
    lines = []
    if task is None:
        lines.append(f"`vision-rl {command} --task NAME --help` also lists that task's options.")
    if training is not None:
        lines.append(
            f"`vision-rl {command}` also takes all options of {training}: --output_dir, --max_steps, --learning_rate, "
            "--per_device_train_batch_size, ...; --help_all lists them. --accelerate_config NAME starts one rank per device: "
            "single_gpu, multi_gpu, zero1, zero2, zero3, fsdp2, or a file of your own."
        )
    return " ".join(lines)
