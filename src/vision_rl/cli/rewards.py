"""What `--reward` names: the task's rewards, a function in a file, or an evaluate module."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vision_rl.task import load_file


def load_rewards(names: Sequence[str] | None, task: Any, processor: Any, rows: Any) -> list[Callable]:
    """The reward functions, in the order of their names.

    Args:
        names: the task's names, `file.py:function`, or the folder of an evaluate module; None: the task's only one.
        task: its module.
        processor: of the model that is tuned.
        rows: the training rows, from which some rewards take counts.

    Raises:
        ValueError: for a name that is none of these, with the nearest.
    """
    if not names and len(task.REWARDS) > 1:
        raise ValueError(
            f"Choose what is rewarded with --reward: {', '.join(task.REWARDS)}, or my_rewards.py:function."
        )
    return [_load(name, task, processor, rows) for name in names or task.REWARDS]


def _load(name: str, task: Any, processor: Any, rows: Any) -> Callable:
    if name in task.REWARDS:
        return task.REWARDS[name](processor, rows)
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        module = load_file(Path(file))
        if not callable(getattr(module, function, None)):
            raise ValueError(f"{file} has no function {function!r} to reward with.")
        return getattr(module, function)
    if Path(name).exists():
        import evaluate

        return evaluate.load(name)
    nearest = get_close_matches(name, task.REWARDS, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(
        f"There is no reward {name!r}.{hint} The task has {', '.join(task.REWARDS)}; other rewards are named as "
        "my_rewards.py:function, or by the path of an evaluate module."
    )
