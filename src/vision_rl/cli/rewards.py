"""What `--reward` names: the task's rewards, a function in a file, or an evaluate module."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vision_rl.task import load_file
from vision_rl.trainer.modules import load_module, module_path


def load_rewards(names: Sequence[str] | None, task: Any, processor: Any, rows: Any) -> list[Callable]:
    """The reward functions, in the order of their names.

    Args:
        names: the task's names, `file.py:function`, or the folder of an evaluate module; None: the task's only one.
        task: its module.
        processor: of the model that is tuned.
        rows: the training rows, from which some rewards take counts.

    Raises:
        ValueError: for a name that is none of these, with the nearest.
        FileNotFoundError: for a file that is not there.
    """
    return [_load(name, task, processor, rows) for name in named_rewards(names, task)]


def named_rewards(names: Sequence[str] | None, task: Any) -> list[str]:
    """The names of the rewards, each of which is there; none is loaded.

    Raises:
        ValueError: for a name that is none of a reward, with the nearest.
        FileNotFoundError: for a file that is not there.
    """
    if not names and len(task.REWARDS) > 1:
        raise ValueError(
            f"Choose what is rewarded with --reward: {', '.join(task.REWARDS)}, or my_rewards.py:function."
        )
    for name in names or ():
        file = _file_of(name)
        if name in task.REWARDS or module_path(name) == name:
            continue
        if file is None:
            nearest = get_close_matches(name, task.REWARDS, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(
                f"There is no reward {name!r}.{hint} The task has {', '.join(task.REWARDS)}; other rewards are named as "
                "my_rewards.py:function, or by the path of an evaluate module."
            )
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file}.")
    return list(names or task.REWARDS)


def _file_of(name: str) -> Path | None:
    """The file of a reward that is named as file.py:function."""
    file, colon, _ = name.rpartition(":")
    return Path(file) if colon and file.endswith(".py") else None


def _load(name: str, task: Any, processor: Any, rows: Any) -> Callable:
    if name in task.REWARDS:
        return task.REWARDS[name](processor, rows)
    file = _file_of(name)
    if file is None:
        return load_module(name)
    function = getattr(load_file(file), name.rpartition(":")[2], None)
    if not callable(function):
        raise ValueError(f"{file} has no function {name.rpartition(':')[2]!r} to reward with.")
    return function
