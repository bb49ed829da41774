"""Broken input for every public function: structures with something changed in them, files with damaged bytes.

`VISION_RL_FUZZ=500 python -m pytest tests/test_fuzz.py tests/test_hostile_annotations.py` tries 500 inputs for each.
"""

import json
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image


COUNT = int(os.environ.get("VISION_RL_FUZZ", "0"))  # inputs for each function; 0: as many as the test itself asks for

# values that JSON can hold
ODD = [None, True, -1, 0, 1.5, 1e400, float("nan"), 2**80, "", "1", "\ud800", "../../x", "/etc/passwd", "a\0b", [], {}]
ODD += [[None], {"id": 1}, [1, 2, 3], ["a"] * 4, "x" * 1000, [[[[]]]]]
# further values that a caller can pass
DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]
OBJECTS = [*ODD, 1e39, -1e39, 10**400, -(2**63), 2**31, 1j, b"ab", (), (1, 2), {1}, range(3), object(), int, len, DEEP]
OBJECTS += [np.float32("nan"), np.int64(3), np.zeros(0), np.zeros((2, 0)), np.full((2, 2), np.nan), np.array("a")]
OBJECTS += [np.array([None, 1]), np.arange(6).reshape(2, 3), np.array([1 + 2j]), np.array([2**63], np.uint64)]
OBJECTS += [torch.zeros(()), torch.zeros(0), torch.full((3,), torch.nan), torch.ones(2, 3, dtype=torch.bool)]
OBJECTS += [torch.zeros(2, 2, requires_grad=True), torch.ones(3).to_sparse(), torch.zeros(2, device="meta")]
OBJECTS += [Image.new("RGB", (2, 3)), Image.new("L", (4, 4)), Image.new("RGB", (0, 2)), Image.new("P", (4, 4))]
NUMBERS = [0, -1, 1, 7, 2**31 - 1, -(2**31), 2**62, -(2**63), 1e39, np.nan, np.inf, -np.inf, 0.5]


def mutated(content: Any, rng: random.Random, odd: list = ODD) -> Any:
    """A copy of the content in which something is changed, removed or added at a random place."""
    if isinstance(content, np.ndarray | torch.Tensor) and _is_plain(content) and rng.random() < 0.8:
        return _mutated_array(content, rng)
    if not isinstance(content, dict | list | tuple) or not content:
        return rng.choice(odd)
    entries: Any = dict(content) if isinstance(content, dict) else list(content)
    key = rng.choice(list(entries) if isinstance(entries, dict) else range(len(entries)))
    inner, change = entries[key], rng.randrange(5)
    if _has_parts(inner) and rng.random() < 0.8:
        entries[key] = mutated(inner, rng, odd)
    elif change == 0:
        del entries[key]
    elif change == 1 and isinstance(entries, list):
        entries.append(rng.choice([inner, rng.choice(odd)]))
    elif change == 2 and type(inner) in (int, float):
        entries[key] = rng.choice(NUMBERS[:6] if type(inner) is int else NUMBERS)
    else:
        entries[key] = rng.choice(odd)
    return tuple(entries) if isinstance(content, tuple) else entries


def _is_plain(array: Any) -> bool:
    """Whether this is an array of numbers in memory."""
    if isinstance(array, torch.Tensor):
        return array.layout == torch.strided and array.device.type == "cpu" and not array.requires_grad
    return array.dtype.kind in "biuf"


def _has_parts(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim > 0 and len(value) > 0
    return isinstance(value, dict | list | tuple) and len(value) > 0


def _mutated_array(array: Any, rng: random.Random) -> Any:
    """The array with another number in it, of another type, or in another shape."""
    values = array.numpy() if isinstance(array, torch.Tensor) else array
    change = rng.randrange(6)
    if change < 2 and values.size:
        values = values.copy()
        value = rng.choice(NUMBERS)
        with np.errstate(all="ignore"):
            values.reshape(-1)[rng.randrange(values.size)] = np.array(value).astype(values.dtype)
    elif change == 2:
        with np.errstate(all="ignore"):
            values = values.astype(rng.choice([np.float64, np.float32, np.int64, np.uint8, np.bool_, np.complex64]))
    elif change == 3:
        values = values[: rng.randrange(len(values) + 1)] if values.ndim else values[None]
    elif change == 4:
        values = rng.choice([values[None], values.reshape(-1), values.T, values[..., None]])
    else:
        values = np.concatenate([values, values]) if values.ndim else values
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(array, torch.Tensor) else values


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes, some of them changed, cut off or doubled."""
    changed = bytearray(data)
    start, length = rng.randrange(len(changed)), rng.randrange(1, 30)
    change = rng.randrange(5)
    if change == 0:
        del changed[start:]
    elif change == 1:
        changed[start : start + length] = rng.randbytes(length)
    elif change == 2:
        changed[start:start] = changed[start : start + length]
    elif change == 3:
        changed[start] ^= 1 << rng.randrange(8)
    else:
        odd = [b"[" * 9999, b'{"a":' * 9999, b"\xff\xfe", b"9" * 9999, b'"', b"\\u", b"\0"]
        changed[start : start + length] = rng.choice(odd)
    return bytes(changed)


def fault_of(error: BaseException, names: list[str]) -> str | None:
    """Why an error is a bad answer to broken input: it has a wrong type or names no argument. `None` if it is good."""
    if not isinstance(error, ValueError | TypeError | OSError):
        return type(error).__name__
    if isinstance(error, UnicodeError | json.JSONDecodeError):
        return f"a bare {type(error).__name__}"
    if isinstance(error, OSError) and error.filename is not None:
        return None
    told = str(error).lower()
    named = any(name.lower().removesuffix("s") in told for name in names)  # "caption 2 is ..." names `captions`
    return None if named else f"a {type(error).__name__} that names no argument"


def attack(
    call: Callable[..., Any],
    arguments: dict[str, Any],
    rng: random.Random,
    count: int,
    says: list[str],
    check: Callable[[Any, dict], bool],
) -> list[str]:
    """Call with broken arguments `count` times, and return the faults, one line for each.

    Args:
        call: takes the arguments by name.
        arguments: good ones, which are broken here.
        says: words that an error may have instead of the name of an argument.
        check: whether an output is right for the arguments that it was made from, good ones or broken ones.
    """
    assert check(call(**arguments), arguments), "the arguments that are to be broken are not good ones"
    faults = []
    for _ in range(COUNT or count):
        broken = dict(arguments)
        for name in rng.choices(list(broken), k=rng.randrange(1, 3)):
            broken[name] = mutated(broken[name], rng, OBJECTS)
        try:
            output = call(**broken)
        except BaseException as error:
            fault = fault_of(error, [*says, *arguments])
            if fault is not None:
                faults.append(f"{fault}: {str(error)[:150]!r} of {_shown(broken)}")
        else:
            if not check(output, broken):
                faults.append(f"a silent answer {_shown(output)} to {_shown(broken)}")
    return faults


def _shown(value: Any) -> str:
    try:
        return repr(value)[:700]
    except RecursionError:
        return f"a {type(value).__name__} nested too deep"
