"""What may be `compute_metrics`: a function, an evaluate module or several, and how they are one function."""

import dis
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

from vision_rl.trainer.modules import (
    for_processor,
    is_combination,
    is_evaluate_module,
    load_module,
    module_path,
    of_compute,
)


FORM = "compute_metrics(predictions=, references=) -> dict, an evaluate module, or a list of these"


def as_metric(compute_metrics: Any, processor: Any) -> Callable[..., dict] | None:
    """`compute_metrics` as one function of predictions and references, for the trainer's processor.

    Raises:
        TypeError: for what cannot be one, such as transformers' `compute_metrics(eval_prediction)`.
        ValueError: for a name of no module, and for sizes that are not the processor's.
    """
    if isinstance(compute_metrics, list | tuple):
        if not compute_metrics:
            raise ValueError("compute_metrics is an empty list: leave it out, or name a metric.")
        if any(each is None for each in compute_metrics):
            raise TypeError(f"compute_metrics has None in its list; it must be {FORM}.")
        functions = [as_metric(each, processor) for each in compute_metrics]
        return functions[0] if len(functions) == 1 else SeveralMetrics(functions, list(map(_name_of, compute_metrics)))  # type: ignore[arg-type]
    metric = of_compute(compute_metrics)
    if isinstance(metric, str):
        path = module_path(metric)
        if path is None:
            raise ValueError(
                f"compute_metrics is {metric!r}, which is neither the path of an evaluate module nor the name of one "
                f"in vision_rl: load it yourself, compute_metrics=evaluate.load({metric!r})."
            )
        metric = load_module(path)
    metric = for_processor(metric, processor)
    if is_evaluate_module(metric) or is_combination(metric):
        return metric.compute
    check_metric(metric)
    return metric


class SeveralMetrics:
    """Metrics one after the other; where two have a key in common, it has the later one's name in front."""

    def __init__(self, functions: Sequence[Callable[..., dict]], names: list[str]):
        self.functions, self.names = functions, names

    def __call__(self, predictions: list, references: list) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for function, name in zip(self.functions, self.names, strict=True):
            result = function(predictions=predictions, references=references)
            check_metric_result(result)
            results |= {f"{name}_{key}" if key in results else key: value for key, value in result.items()}
        return results


def _name_of(metric: Any) -> str:
    metric = of_compute(metric)
    return getattr(metric, "__name__", None) or getattr(metric, "name", None) or type(metric).__name__


def check_metric(compute_metrics: Any) -> None:
    """Check that a metric is a function of predictions and references that returns something."""
    if compute_metrics is None:
        return
    if not callable(compute_metrics):
        raise TypeError(f"compute_metrics is a {type(compute_metrics).__name__}; it must be {FORM}.")
    signature = inspect.signature(compute_metrics)
    try:
        signature.bind(predictions=[], references=[])
    except TypeError as error:
        raise TypeError(
            f"compute_metrics takes {signature}; it must be {FORM}. It is given the decoded completions of the whole evaluation "
            "set beside their references, not transformers' EvalPrediction of ids."
        ) from error
    if inspect.isfunction(compute_metrics) and _returns_nothing(compute_metrics):
        raise TypeError(f"compute_metrics has no `return` with a value; it must be {FORM}.")


def _returns_nothing(function: FunctionType) -> bool:
    """Whether each of its returns is of None: a forgotten `return`, which would be noticed at the first evaluation only."""
    instructions = list(dis.get_instructions(function))
    returned = [i.argval for i in instructions if i.opname == "RETURN_CONST"]
    for before, after in itertools.pairwise(instructions):
        if after.opname == "RETURN_VALUE":
            returned.append(before.argval if before.opname == "LOAD_CONST" else before)
    return not inspect.isgeneratorfunction(function) and all(value is None for value in returned)


def check_metric_result(metrics: Any) -> None:
    """Check that a metric has returned a dict."""
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"compute_metrics returned a {type(metrics).__name__}; it must return a dict of numbers by name, such as "
            "{'accuracy': 0.5}."
        )


def scalars_of(metrics: Any) -> dict[str, float]:
    """The numbers of what a metric gives, also numpy's and tensors; lists, texts and arrays are left out."""
    check_metric_result(metrics)
    return {key: float(value) for key, value in metrics.items() if _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (getattr(value, "ndim", None) == 0 and not isinstance(value, str))
