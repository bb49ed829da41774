"""A task is a module of one shape: what the command line and `vision_rl.pipeline` ask of it, of ours and of yours alike.

`vision_rl.tasks.detection` is one, and so is a file of yours; docs/add-a-task.md makes one. There is no list of them:
ours are the packages in `vision_rl/tasks`, and another one is named by its path.
"""

import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from vision_rl import tasks


class Task(Protocol):
    """The names that a task's module defines. `options` is an `Options`; rows are a `datasets.Dataset`."""

    Processor: type
    """The processor of its models (`vision_rl.processing`), which also draws their answers."""

    Options: type
    """A dataclass of the task's own options: each field is one on the command line and a key of a recipe.

    A field that is called as an attribute of the processor and is None takes the value of the model that is continued.
    """

    REWARDS: Mapping[str, Callable[[Any, Any], Callable]]
    """By the names that `--reward` takes, what makes each reward: `make(processor, train_rows) -> reward`."""

    def load_data(self, options: Any, split: str) -> Any:
        """The rows of "train", "validation" or "test"; None where the options name none for it."""

    def make_processor(self, options: Any, image_processor: Any, rows: Any) -> Any:
        """The processor of a new model, for images as `image_processor` makes them and targets as `rows` have them.

        `rows` is None in a dry run whose data is not there yet.
        """

    def make_metric(self, processor: Any) -> Any:
        """What trainers take as `compute_metrics`: `metric(predictions=, references=) -> dict`, an evaluate module, or a list."""

    def save_results(self, predictions: Any, rows: list[dict], processor: Any, folder: Path) -> None:
        """Writes predictions in the form of the field, COCO's where it has one, into a folder that is there.

        Predictions are a sequence that may be too large to be held; rows have `image_id`, `image_size` (width, height), and
        the data set's columns but for the image and the targets.
        """

    def check_image_ids(self, image_ids: Any) -> None:
        """Optional: raises ValueError for the column `image_id` if `save_results` could not write it, before any answer."""


NAMES = ("Processor", "Options", "REWARDS", "load_data", "make_processor", "make_metric", "save_results")


def our_tasks() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def load_task(name_or_path: str) -> Any:
    """The module of one of our tasks, by its name, or of yours, by the path of its file.

    Raises:
        ValueError: for a name that is no task, with the nearest, and for a module that lacks some of `NAMES`.
        FileNotFoundError: for a file that is not there.
    """
    if name_or_path.endswith(".py"):
        module = load_file(Path(name_or_path))
    elif name_or_path in our_tasks():
        module = importlib.import_module(f"{tasks.__name__}.{name_or_path}")
    else:
        nearest = get_close_matches(name_or_path, our_tasks(), n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(
            f"There is no task {name_or_path!r}.{hint} vision_rl has {', '.join(our_tasks())}; a task of your own "
            "is named by its file, such as my_task.py."
        )
    missing = [name for name in NAMES if name not in vars(module)]
    if missing:
        raise ValueError(
            f"{name_or_path} is not a complete task: it does not define {', '.join(missing)}. vision_rl.task.Task describes each."
        )
    return module


def task_of(model: str, revision: str | None = None) -> Any:
    """Which of our tasks a saved model is for, by the class of its processor; `revision` is of a model on the Hub.

    Raises:
        ValueError: where it is none of ours, or `model` has no processor.
        FileNotFoundError: where `model` is no folder and cannot be read from the Hub.
    """
    saved = saved_processor_class(model, revision)
    for name in our_tasks():
        module = load_task(name)
        if module.Processor.__name__ == saved:
            return module
    raise ValueError(
        f"{model} has {'no processor of its own' if saved is None else f'a {saved}'}, which does not tell its task: set `task` to "
        f"one of {', '.join(our_tasks())}, or to the file of your own."
    )


def names_a_task(model: str) -> bool:
    """Whether the processor of a saved model is that of one of our tasks."""
    try:
        task_of(model)
    except ValueError:
        return False
    return True


def load_processor(model: str, task: Any, revision: str | None = None) -> Any:
    """The processor that was saved with a model, which must be one of the task's; `revision` is of a model on the Hub.

    Raises:
        ValueError: for a model of another task.
        FileNotFoundError: where `model` is no folder and cannot be read from the Hub.
    """
    from transformers import AutoProcessor, ProcessorMixin

    from vision_rl.processing import TextProcessor, VisionProcessor

    saved = saved_processor_class(model, revision)
    processor = AutoProcessor.from_pretrained(model, revision=revision) if saved is not None else None
    reads_text = issubclass(task.Processor, TextProcessor) and not isinstance(processor, VisionProcessor)
    if isinstance(processor, task.Processor) or (reads_text and isinstance(processor, ProcessorMixin)):
        return processor
    raise ValueError(
        f"{model} is a model of another task: its processor is {'missing' if saved is None else f'a {saved}'}, but the task "
        f"{task.__name__.rpartition('.')[2]} has a {task.Processor.__name__}."
    )


def saved_processor_class(model: str, revision: str | None = None) -> str | None:
    """The name of the class of a model's processor, by its configuration alone; None for a model that has none.

    Raises:
        FileNotFoundError: where `model` is no folder and cannot be read from the Hub.
    """
    from transformers.utils import cached_file

    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            path: Any = cached_file(model, name, revision=revision)
        except OSError:  # there is no such file, or no such model
            continue
        found = json.loads(Path(path).read_text()).get("processor_class")
        if found is not None:
            return found
    if not Path(model).is_dir():
        try:
            cached_file(model, "config.json", revision=revision)  # which every model has
        except OSError as error:
            told = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"There is no folder {model}, and no model of this name could be read from the Hub: {told}"
            ) from error
    return None


def load_file(path: Path) -> ModuleType:
    """The module of a file, which is imported once, under its own name; one whose import fails is not kept."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
        return loaded
    if loaded is not None:
        raise ValueError(f"{path.name} has the name of a module that is already imported: rename the file.")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[path.stem] = module  # its classes are found by name, in the workers of a data loader too
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        sys.modules.pop(path.stem, None)
        raise
    return module
