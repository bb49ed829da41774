"""`--accelerate_config`: the same command again, on every device, by `accelerate launch`."""

import subprocess
import sys
from collections.abc import Sequence

from vision_rl.cli.parser import package_file


def launch(command: str, arguments: Sequence[str]) -> int:
    """Start the ranks of a command that has `--accelerate_config FILE_OR_NAME`; returns their exit status.

    `--num_processes` goes to accelerate as well; without it the number of GPUs counts.
    """
    arguments = list(arguments)
    config = _taken(arguments, "--accelerate_config") or ""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(package_file(config, "cli/accelerate_configs", "launch configuration"))]
    launcher += ["--num_processes", _taken(arguments, "--num_processes") or str(_num_gpus())]
    launcher += ["--main_process_port", "0"]  # a free one
    return subprocess.call([*launcher, "--module", "vision_rl.cli", command, *arguments])


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
