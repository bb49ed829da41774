"""What is done about rows that cannot be used: one policy for all loaders."""

from collections import defaultdict
from pathlib import Path
from typing import Literal, TypeAlias, get_args


OnBadRow: TypeAlias = Literal["raise", "skip"]

_NUM_NAMED = 3  # of each kind


class BadRows:
    """Collects what is wrong with the rows of a file, by kind; at the end it is all told at once.

    Args:
        file: that the rows are from.
        on_bad_row: "raise" an error that counts them all and names the first of each kind, or "skip" them and say so.
    """

    def __init__(self, file: str | Path, on_bad_row: OnBadRow):
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f'on_bad_row is "raise" or "skip"; it is {on_bad_row!r}.')
        self.file, self.on_bad_row = file, on_bad_row
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._named: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._missing: set[tuple[str, str]] = set()

    def add(self, noun: str, what: str, where: str, count: int = 1, missing: bool = False) -> None:
        """One more: "images", "are not there", "a.jpg". `missing`: a file is, which has an error class of its own."""
        kind = (noun, what)
        self._counts[kind] += count
        if len(self._named[kind]) < _NUM_NAMED:
            self._named[kind].append(where)
        if missing:
            self._missing.add(kind)

    def settle(self, totals: dict[str, int]) -> list[str]:
        """Raises, or tells what is left out, a sentence a kind; `totals` says of how many, by noun."""
        sentences = [
            f"{count} of {totals[noun]} {noun} {what}; the first: {'; '.join(self._named[noun, what])}"
            for (noun, what), count in self._counts.items()
        ]
        if sentences and self.on_bad_row == "raise":
            told = " ".join(sentences) if len(sentences) == 1 else "\n- ".join(["", *sentences])
            error = FileNotFoundError if self._missing == set(self._counts) else ValueError
            raise error(f'{self.file}: {told}.\nMend them, or leave them out with on_bad_row="skip".')
        return [f"{self.file}: {sentence}. Left out." for sentence in sentences]
