"""`--accelerate_config`: the same command again, on every device, by `accelerate launch`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from vision_rl.cli.parser import package_file
from vision_rl.trainer.processes import ASKED


def launch(command: str, arguments: Sequence[str]) -> int:
    """Start the ranks of a command that has `--accelerate_config FILE_OR_NAME`; returns their exit status.

    `--num_processes` goes to accelerate as well; without it that of the file counts, for our files the number of GPUs. Each
    rank is told the number, and ends if it is not what was started.
    """
    arguments = list(arguments)
    config = _taken(arguments, "--accelerate_config") or ""
    path = package_file(config, "cli/accelerate_configs", "launch configuration")
    asked = _taken(arguments, "--num_processes") or str(_num_processes(path))
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(path), "--num_processes", asked]
    launcher += ["--main_process_port", "0"]  # a free one
    return subprocess.call(
        [*launcher, "--module", "vision_rl.cli", command, *arguments], env={**os.environ, ASKED: asked}
    )


def _num_processes(config: Path) -> int:
    own = config.is_relative_to(Path(__file__).parent)
    written = {} if own else yaml.safe_load(config.read_text()) or {}
    return written.get("num_processes") or _num_gpus()


def _taken(arguments: list[str], name: str) -> str | None:
    if name not in arguments:
        return None
    place = arguments.index(name)
    if place + 1 == len(arguments):
        raise ValueError(f"{name} needs a value.")
    value = arguments[place + 1]
    del arguments[place : place + 2]
    return value


def _num_gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())
