"""Answers of any task as JSON: pictures and arrays in files that are named by what is in them, all else in the line itself."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vision_rl.pictures import rgb_image


FILE = "$file"  # the key of an object that stands for a file
_NAME = re.compile(r"[0-9a-f]{64}\.(png|npy)")  # so none leads out of the folder
_EXACT = ("L", "RGB", "RGBA")  # modes that PNG keeps as they are


def store(value: Any, folder: Path) -> Any:
    """The value in JSON's types. A file is there, whole, before its name is returned; one that is there already stays.

    Raises:
        TypeError: for anything but texts, numbers, None, lists, dictionaries with texts as keys, arrays, tensors and pictures.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Image.Image):
        value = value if value.mode in _EXACT and not value.has_transparency_data else rgb_image(value, 0)
        pixels = np.asarray(value)  # without EXIF, which may say where a photo was taken
        return _file(folder, f"{_digest(pixels)}.png", lambda file: Image.fromarray(pixels).save(file, "png"))
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _file(folder, f"{_digest(value)}.npy", lambda file: np.save(file, value, allow_pickle=False))
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, list | tuple):
        return [store(entry, folder) for entry in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != FILE for key in value):
        return {key: store(entry, folder) for key, entry in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"An answer holds a {type(value).__name__}, which cannot be stored. These can: texts, numbers, None, lists, "
        f"dictionaries with texts as keys (not {FILE!r}), arrays of numbers, tensors and PIL images."
    )


def restore(value: Any, folder: Path) -> Any:
    """What was stored: tensors as arrays, tuples as lists, pictures of other modes in RGB.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for one that cannot be read, or does not hold what was stored.
    """
    if isinstance(value, dict) and FILE in value:
        return _read(folder / value[FILE])
    if isinstance(value, dict):
        return {key: restore(entry, folder) for key, entry in value.items()}
    return [restore(entry, folder) for entry in value] if isinstance(value, list) else value


def files_of(value: Any) -> Iterator[str]:
    """The names of the files that a stored value refers to.

    Raises:
        ValueError: for a name that `store` does not give.
    """
    if isinstance(value, dict) and FILE in value:
        name = value[FILE]
        if len(value) != 1 or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{str(value)[:80]!r} is not the name of a stored file")
        yield name
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from files_of(entry)


def is_picture(value: Any) -> bool:
    """Whether a stored value is a picture; its name is for `files_of` to check."""
    return isinstance(value, dict) and str(value.get(FILE)).endswith(".png")


def _file(folder: Path, name: str, write: Any) -> dict[str, str]:
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, folder / name)
            except BaseException:
                os.unlink(file.name)
                raise
    return {FILE: name}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, which a choice refers to.")
    try:
        if path.suffix == ".npy":
            value = found = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                value, found = image, np.asarray(image)
    except Exception as error:  # Pillow and numpy raise errors of many kinds
        raise ValueError(f"{path} cannot be read: {error}") from error
    if _digest(found) != path.stem:
        raise ValueError(f"{path} does not have the content that was shown (SHA-256).")
    return value


def _digest(array: np.ndarray) -> str:
    """Digest the values, and not a file's bytes, which another version of a library writes otherwise."""
    kind = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(kind + np.ascontiguousarray(array).tobytes()).hexdigest()
