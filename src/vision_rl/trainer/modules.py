"""Evaluate modules among rewards and metrics: as modules, by name or path, or by their `compute`; and what they read.

evaluate is imported only where somebody names a module: where nobody has imported it, nothing is a module of it. A name on
the Hub is not taken: `evaluate.load` of it runs code from there, which is for the user to say.
"""

import ast
import functools
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vision_rl
from vision_rl.rewards import OfProcessor, check_same_fact


FACTS = ("num_bins", "num_labels", "categories")  # of a processor, that functions of ours take as arguments


def is_evaluate_module(thing: Any) -> bool:
    evaluate = sys.modules.get("evaluate")
    return evaluate is not None and isinstance(thing, evaluate.EvaluationModule)


def is_ours(module: Any) -> bool:
    from vision_rl.metric_module import MetricModule

    return isinstance(module, MetricModule)


def is_combination(thing: Any) -> bool:
    """Whether it is of `evaluate.combine`."""
    evaluate = sys.modules.get("evaluate")
    return evaluate is not None and isinstance(thing, evaluate.CombinedEvaluations)


def of_compute(thing: Any) -> Any:
    """The module whose `compute` this is; anything else as it is."""
    owner = getattr(thing, "__self__", None)
    named = inspect.ismethod(thing) and thing.__name__ == "compute"
    return owner if named and (is_evaluate_module(owner) or is_combination(owner)) else thing


def module_path(name: str) -> str | None:
    """Where the evaluate module lies that a string names: a path, or one of ours. `None` for any other string."""
    path = Path(name)
    if path.is_file() or (path.is_dir() and (path / f"{path.resolve().name}.py").is_file()):
        return name
    try:
        return vision_rl.metric_path(name)
    except ValueError:
        return None


def load_module(path: str) -> Any:
    """Raises `ValueError` for one that is not made without arguments, or not at all."""
    import evaluate

    try:
        return evaluate.load(path)
    except Exception as error:
        raise ValueError(
            f"The evaluate module {path} cannot be loaded by its path alone: {error} Load it yourself, "
            "evaluate.load(path, ...), and pass the module."
        ) from error


def gives_rewards(module: Any) -> bool:
    """Whether the module's code says `rewards` anywhere: the key under which a reward stands in its result."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(type(module))))  # type: ignore[arg-type]
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return "rewards" in said | {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}


def check_facts(name: str, options: Mapping[str, Any], processor: Any) -> None:
    """Check that options of a function or module of ours, by its `name`, say of the processor what it says of itself."""
    for fact in FACTS:
        if fact in options and hasattr(processor, fact):
            check_same_fact(name, fact, options[fact], getattr(processor, fact))


def for_processor(thing: Any, processor: Any) -> Any:
    """A reward or metric for the trainer's processor; see `OfProcessor`. One that knows nothing of it stays as it is."""
    if isinstance(thing, functools.partial):
        if getattr(thing.func, "__module__", "").startswith("vision_rl."):
            check_facts(getattr(thing.func, "__name__", type(thing.func).__name__), thing.keywords, processor)
        inner = for_processor(thing.func, processor)
        return thing if inner is thing.func else functools.partial(inner, *thing.args, **thing.keywords)
    knows = isinstance(thing, OfProcessor) or (is_evaluate_module(thing) and is_ours(thing))
    return thing.for_processor(processor) if knows else thing
