"""Captions of a scene of digits: sentences that are true of the visible pixels of the scene."""

from dataclasses import dataclass

import numpy as np


STUFF = ("brick", "grass", "gravel", "photo")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Digit:
    category: int
    box: tuple[int, int, int, int]  # x, y, w, h
    ink: np.ndarray  # (h, w) in 0..1
    colour: str


def visible_digits(digits: list[Digit], size: int) -> np.ndarray:
    """Return the index `(size, size)` of the digit that each pixel shows, in the list `digits`; -1 is the ground."""
    shown = np.full((size, size), -1)
    for index, digit in enumerate(digits):
        x, y, w, h = digit.box
        shown[y : y + h, x : x + w][digit.ink > 0.5] = index
    return shown


def scene_captions(rng: np.random.Generator, digits: list[Digit], ground: np.ndarray) -> list[str]:
    """Write five true sentences; each draws anew which of several digits it mentions, larger digits more often."""
    shown = visible_digits(digits, len(ground))
    areas = np.bincount(shown[shown >= 0], minlength=len(digits))
    visible = np.flatnonzero(areas)
    names = [_with_article(f"{digit.colour} {digit.category}") for digit in digits]
    below = [_kinds(_ground_below(digit, ground)) for digit in digits]
    if len(visible) == 0:
        kinds = _kinds(ground)
        return ["no digits", kinds, f"{kinds} without digits", f"nothing but {kinds}", f"an image of {kinds}"]
    if len(visible) == 1:
        name, kind = names[visible[0]], below[visible[0]]
        return [name, f"{name} on {kind}", f"one digit, {name}", f"{kind} with {name}", f"one digit on {kind}"]

    def pair() -> tuple[int, int]:
        one, other = rng.choice(visible, size=2, replace=False, p=areas[visible] / areas.sum())
        return one, other

    def related(one: int, other: int) -> str:
        return f"{names[one]} {_relation(digits[one].box, digits[other].box)} {names[other]}"

    one, other = pair()
    apart = f"{names[one]} on {below[one]} and {names[other]} on {below[other]}"
    mentioned = [names[index] for index in pair()] + (
        [f"{_count(len(visible) - 2, 'more ')}"] if len(visible) > 2 else []
    )
    number, kinds = _count(len(visible)), _kinds(np.concatenate([_ground_below(digits[i], ground) for i in visible]))
    return [
        related(*pair()),
        f"{related(one, other)} on {below[one]}" if below[one] == below[other] else apart,
        f"{number}, {related(*pair())}",
        _listed(mentioned),
        f"{number} on {kinds}",
    ]


def _ground_below(digit: Digit, ground: np.ndarray) -> np.ndarray:
    """Return the kind of ground below most of a digit, hidden parts included, as an index into STUFF `(1,)`."""
    x, y, w, h = digit.box
    return np.argmax(np.bincount(ground[y : y + h, x : x + w][digit.ink > 0.5]), keepdims=True)


def _relation(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> str:
    """Return where a box is, seen from another box: by the larger of the two distances of their centres."""
    dx = (2 * box[0] + box[2]) - (2 * other[0] + other[2])  # twice the distance, a whole number
    dy = (2 * box[1] + box[3]) - (2 * other[1] + other[3])
    if dx == dy == 0:
        return "and"
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _kinds(ground: np.ndarray) -> str:
    """Return all kinds of ground that occur, the photo last, such as "brick, grass and a photo"."""
    return _listed([STUFF[kind] if STUFF[kind] != "photo" else "a photo" for kind in np.unique(ground)])


def _count(number: int, more: str = "") -> str:
    return f"{_NUMBERS[number] if number < len(_NUMBERS) else number} {more}digit{'s' * (number != 1)}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
