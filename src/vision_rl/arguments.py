"""What callers give, checked: an error says which argument it is about, and what that was."""

import functools
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from PIL import Image


P = ParamSpec("P")
R = TypeVar("R")

PACKAGE = Path(__file__).parent
LARGEST = float(np.finfo(np.float32).max)  # of what is computed with
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, RuntimeError)
_NOT_THE_ARGUMENTS = ("OutOfMemoryError", "AcceleratorError")  # torch's; this module is read without torch


def naming_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that a function's own checks did not foresee into a `ValueError` with all of its arguments.

    Nobody can foresee every structure that a caller's code makes, and `KeyError: 'boxes'` from the depth of a metric tells
    nothing. A `ValueError`, `TypeError` or `OSError` that names an argument is left as it is. It costs nothing where
    nothing breaks.
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except _BROKEN as error:
            if type(error).__name__ in _NOT_THE_ARGUMENTS:
                raise
            try:
                given = _by_name(inspect.signature(function).bind(*args, **kwargs))
            except TypeError:  # arguments that the function does not have: Python names them
                raise error from None
            shown = {name: described(value) for name, value in given.items() if name not in ("self", "log_metric")}
            clear = isinstance(error, ValueError | TypeError) and not isinstance(error, UnicodeError)
            if clear and (is_of_ours(error) or any(name in str(error) for name in shown)):
                raise
            what = "; ".join(f"{name} is {text}" for name, text in shown.items())
            cause = str(error).partition("\n")[0]
            raise ValueError(
                f"{function.__qualname__} cannot use what it was given ({what}): {type(error).__name__}: {cause}"
            ) from error

    return named


def is_of_ours(error: BaseException) -> bool:
    """Whether a `raise` of this package made it, a sentence for people, and not a call that failed there."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Path(where.filename).is_relative_to(PACKAGE) and (where.line or "").startswith("raise")


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments, each of the further keywords by its own name."""
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    others = {name for name in bound.arguments if kinds[name] is inspect.Parameter.VAR_KEYWORD}
    named = {name: value for name, value in bound.arguments.items() if name not in others}
    return named | {key: value for name in others for key, value in bound.arguments[name].items()}


def described(value: Any) -> str:
    """A value in a message: its type, its size, and itself where that is short."""
    try:
        if _is_array(value):
            return f"a {type(value).__name__} {tuple(value.shape)} of {value.dtype}"
        if isinstance(value, list | tuple | dict | set):
            first = f", the first a {type(next(iter(value))).__name__}" if value else ""
            return f"a {type(value).__name__} of {len(value)}{first}"
        text = repr(value)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def check_rows(**columns: Any) -> None:
    """All of these are lists, or arrays and the like, with as many rows as each other.

    Raises:
        ValueError: naming the one that is none, or the two that differ.
    """
    for name, values in columns.items():
        is_rows = isinstance(values, Sized) and isinstance(values, Iterable)
        if _is_array(values):
            is_rows = values.ndim > 0
        if not is_rows or isinstance(values, str | bytes | Mapping | set | Image.Image):
            raise ValueError(f"{name} must be a list with one entry per row; it is {described(values)}.")
    first, *others = columns
    for name in others:
        if len(columns[name]) != len(columns[first]):
            raise ValueError(
                f"There are {len(columns[first])} {first} but {len(columns[name])} {name}: pass one of each per row."
            )


def check_sizes(name: str, sizes: Any) -> None:
    """N pairs of positive, finite numbers: the two sides of images.

    Raises:
        ValueError: naming the argument, and the first that is none.
    """
    check_rows(**{name: sizes})
    for row, size in enumerate(sizes):
        try:
            good = len(size) == 2 and all(0 < side < math.inf for side in size)
        except (TypeError, ValueError, RuntimeError):
            good = False
        if not good:
            raise ValueError(
                f"{name}[{row}] must be the two sides of an image in pixels, both above 0; it is {described(size)}."
            )


def check_number(name: str, value: Any, least: float = -LARGEST, most: float = LARGEST, whole: bool = False) -> None:
    """A number, Python's or numpy's, from `least` to `most`.

    Raises:
        ValueError: naming the argument.
    """
    kinds = int | np.integer if whole else int | float | np.integer | np.floating
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        above = "" if least == -LARGEST else f" from {least}"
        below = "" if most == LARGEST else f" to {most}"
        kind = "whole" if whole else "finite"
        raise ValueError(f"{name} must be a {kind} number{above}{below}; it is {described(value)}.")


def id_rows(name: str, sequences: Any) -> list[np.ndarray]:
    """Token ids, a list, array or tensor a row, as int64 arrays `(T,)`; rows may differ in length.

    Raises:
        ValueError: naming the argument and the row, for anything but whole numbers that fit into 64 bits.
    """
    check_rows(**{name: sequences})
    return [_ids(f"{name}[{row}]", ids) for row, ids in enumerate(sequences)]


def _ids(name: str, ids: Any) -> np.ndarray:
    try:
        array = ids.detach().cpu().numpy() if _is_tensor(ids) else np.asarray(ids)
    except (ValueError, TypeError, OverflowError, RuntimeError, NotImplementedError):  # ragged, or beyond any integer
        array = np.empty(0, object)
    if array.dtype == np.int64 and array.ndim == 1:
        return array
    if array.shape == (0,) and array.dtype != object and (_is_array(ids) or isinstance(ids, list | tuple)):
        return np.zeros(0, np.int64)  # numpy takes an empty list for floats
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.max(initial=0) >= 2**63:
        raise ValueError(f"{name} must be a list of token ids (whole numbers); it is {described(ids)}.")
    return array.astype(np.int64)
