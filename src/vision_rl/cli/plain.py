"""Answers of a model as tensors and plain values, so that reading their file runs nothing that stands in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


PICTURE, ARRAY = "__picture__", "__array__"


def save_plain(value: Any, path: Path) -> None:
    """Write lists, tuples and dicts of numbers, text, arrays and pictures; the file is whole or not there.

    Raises:
        TypeError: for anything else.
    """
    aside = path.with_suffix(".part")
    torch.save(_plain(value), aside)
    aside.replace(path)


def load_plain(path: Path) -> Any:
    """Load what `save_plain` has written. Anything else raises a ValueError that names the file."""
    try:
        return _restored(torch.load(path, weights_only=True))
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        raise ValueError(f"{path} is not a file of answers; delete it, and it will be made again: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return {PICTURE: torch.from_numpy(np.array(value.convert("RGB")))}
    if isinstance(value, np.ndarray):
        return {ARRAY: torch.from_numpy(np.array(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value)) if type(value) in (tuple, list) else [_plain(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool | torch.Tensor):
        return value
    raise TypeError(
        f"A completion or reference holds a {type(value).__name__}, but only numbers, text, arrays and pictures can be saved."
    )


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {PICTURE}:
            return Image.fromarray(value[PICTURE].numpy())
        if set(value) == {ARRAY}:
            return value[ARRAY].numpy()
        return {key: _restored(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_restored, value))
    return value
