"""Which of two answers people find better: a file with one line of JSON a choice."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.pictures import rgb_image
from vision_rl.preferences.stored import files_of, is_picture, restore, store


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two answers to one image.

    Args:
        image_id: of the image, in your data.
        image: a picture, or its path.
        completions: the two answers, as the task decodes them: pictures, texts, boxes, maps.
        models: who gave them; the same twice for two samples of one model.
    """

    image_id: str
    image: Image.Image | str | os.PathLike
    completions: tuple[Any, Any]
    models: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Choice:
    """What one rater said of a pair.

    Args:
        pair: what was shown; its image is in RGB.
        better: which of `pair.completions`, 0 or 1; None: neither.
        order: which of them stood left, and which right.
        rater: a name, as typed.
        time: of the choice, ISO 8601 in UTC.
    """

    pair: Pair
    better: int | None
    order: tuple[int, int] = (0, 1)
    rater: str = ""
    time: str = ""


class ChoiceFile:
    """Choices in JSON lines, and beside them, in `<name>.files/`, the images and pictures that were shown.

    A line has `image_id`, `image`, `completions` (texts, numbers and lists as they are; pictures as `{"$file": ...}`, PNG,
    and arrays, npy), `models`, `order`, `better`, `rater` and `time`. Each is on the disk before `append` returns; several
    pages may append to one file. Files are named by what they hold: nothing is written twice, or over something.

    Args:
        path: of the lines; need not be there yet.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.folder = self.path.with_suffix(".files")
        if self.path.is_dir():
            raise IsADirectoryError(
                f"{self.path} is a folder: name a file in it, such as {self.path / 'choices.jsonl'}."
            )

    def append(self, choice: Choice) -> None:
        """Add a line, with the time that it is, if the choice has none."""
        if choice.better not in (0, 1, None) or sorted(choice.order) != [0, 1]:
            raise ValueError(
                f"better must be 0, 1 or None, and order (0, 1) or (1, 0); they are {choice.better!r} and {choice.order!r}."
            )
        time = choice.time or datetime.now(UTC).isoformat(timespec="seconds")
        said = {"order": list(choice.order), "better": choice.better, "rater": choice.rater, "time": time}
        line = json.dumps({**self._stored(choice.pair), **said}, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"), open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # behind a line that was cut
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self, on_bad_row: OnBadRow = "raise") -> Iterator[Choice]:
        """The choices in order, their files opened one choice at a time, so that there may be many.

        Args:
            on_bad_row: "raise" an error that counts and names all lines that cannot be used, or "skip" them with a warning.

        Raises:
            FileNotFoundError: if there is no such file, or none of those that its lines refer to.
            ValueError: for lines that are no choices, and for files that do not hold what was shown.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file of choices {self.path}: open the page for it and choose.")
        bad_rows = BadRows(self.path, on_bad_row)
        lines = list(self._lines(bad_rows))
        for note in bad_rows.settle({"lines": len(self.path.read_bytes().splitlines())}):
            logger.warning(note)
        return map(self._choice, lines)

    def judged_by(self, rater: str) -> set[str]:
        """The keys of the pairs that a rater has judged. Lines that are damaged count as not judged."""
        if not self.path.is_file():
            return set()
        return {_key(line) for line in self._lines(BadRows(self.path, "skip")) if line["rater"] == rater}

    def key(self, pair: Pair) -> str:
        """What tells a pair from others: a digest of the image, its id, both answers and models. Stores their files."""
        return _key(json.loads(json.dumps(self._stored(pair), allow_nan=False)))

    def _stored(self, pair: Pair) -> dict[str, Any]:
        if len(pair.completions) != 2 or len(pair.models) != 2:
            raise ValueError(
                f"A pair has two completions and two models, not {len(pair.completions)} and {len(pair.models)}."
            )
        return {
            "image_id": str(pair.image_id),
            "image": store(rgb_image(pair.image, 0), self.folder),
            "completions": store(list(pair.completions), self.folder),
            "models": [str(model) for model in pair.models],
        }

    def _lines(self, bad_rows: BadRows) -> Iterator[dict[str, Any]]:
        """Yield the lines that are choices and whose files are all there."""
        for number, text in enumerate(self.path.read_bytes().splitlines(), 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                _check(line)
                absent = [name for name in files_of([line["image"], line["completions"]]) if not self._has(name)]
            except (ValueError, RecursionError) as error:
                bad_rows.add("lines", "are not choices", f"line {number} ({str(error)[:200] or type(error).__name__})")
                continue
            if absent:
                where = f"line {number}, {self.folder / absent[0]}"
                bad_rows.add("lines", "refer to files that are not there", where, missing=True)
            else:
                yield line

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _choice(self, line: dict[str, Any]) -> Choice:
        image, first, second = restore([line["image"], *line["completions"]], self.folder)
        pair = Pair(line["image_id"], image, (first, second), tuple(line["models"]))
        return Choice(pair, line["better"], tuple(line["order"]), line["rater"], line["time"])


def _check(line: Any) -> None:
    """Raises a `ValueError` for what is no choice."""
    if not isinstance(line, dict):
        raise ValueError(f"it is a {type(line).__name__}, not an object")
    wanted: dict[str, Any] = {"image_id": str, "rater": str, "time": str}
    for name, kind in wanted.items():
        if not isinstance(line.get(name), kind):
            raise ValueError(f"{name!r} is {str(line.get(name))[:40]!r}, not a text")
    if not is_picture(line["image"]):
        raise ValueError(f"'image' is {str(line['image'])[:40]!r}, not the name of a stored picture")
    for name, kinds in {"completions": object, "models": str, "order": int}.items():
        values = line.get(name)
        if not isinstance(values, list) or len(values) != 2 or not all(isinstance(value, kinds) for value in values):
            raise ValueError(f"{name!r} is {str(values)[:40]!r}, not a list of two")
    if sorted(line["order"]) != [0, 1]:
        raise ValueError(f"'order' is {line['order']}, not [0, 1] or [1, 0]")
    better = line.get("better", "missing")
    if better is not None and (type(better) is not int or better not in (0, 1)):
        raise ValueError(f"'better' is {str(better)[:40]!r}, not 0, 1 or null")


def _key(line: dict[str, Any]) -> str:
    content = [line[name] for name in ("image_id", "image", "completions", "models")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
