"""The policy of all loaders for rows that cannot be used: raise one error about all of them, or skip them."""

from collections import defaultdict
from pathlib import Path
from typing import Literal, TypeAlias, get_args


OnBadRow: TypeAlias = Literal["raise", "skip"]

_NUM_NAMED = 3  # how many rows of each kind are named


class BadRows:
    """Collects the faults of the rows of a file, by kind, and reports all of them together in `settle`.

    Args:
        file: the file of the rows, which every report names.
        on_bad_row: "raise" an error that counts all bad rows and names the first of each kind, or "skip" the rows and
            return the same report as sentences.

    Raises:
        ValueError: for another `on_bad_row`.
    """

    def __init__(self, file: str | Path, on_bad_row: OnBadRow):
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f'on_bad_row must be "raise" or "skip"; it is {on_bad_row!r}.')
        self.file, self.on_bad_row = file, on_bad_row
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._named: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._missing: set[tuple[str, str]] = set()

    def add(self, noun: str, what: str, where: str, count: int = 1, missing: bool = False) -> None:
        """Record `count` rows with a fault, for example "images", "are not there", "a.jpg".

        `missing` says that the fault is a missing file. If every fault is a missing file, `settle` raises
        `FileNotFoundError`.
        """
        kind = (noun, what)
        self._counts[kind] += count
        if len(self._named[kind]) < _NUM_NAMED:
            self._named[kind].append(where)
        if missing:
            self._missing.add(kind)

    def settle(self, totals: dict[str, int]) -> list[str]:
        """Raise an error about all faults, or with "skip" return one sentence for each kind of fault.

        `totals` is the number of all rows of each noun, which the sentences give. The error is a `FileNotFoundError`
        if only files are missing, else a `ValueError`.
        """
        sentences = [
            f"{count} of {totals[noun]} {noun} {what}; the first: {'; '.join(self._named[noun, what])}"
            for (noun, what), count in self._counts.items()
        ]
        if sentences and self.on_bad_row == "raise":
            told = " ".join(sentences) if len(sentences) == 1 else "\n- ".join(["", *sentences])
            error = FileNotFoundError if self._missing == set(self._counts) else ValueError
            raise error(f'{self.file}: {told}.\nCorrect them, or leave them out with on_bad_row="skip".')
        return [f"{self.file}: {sentence}. They are left out." for sentence in sentences]
