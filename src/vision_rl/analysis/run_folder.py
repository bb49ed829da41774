"""What a run has left in its folder, read as what others may have written: JSON and pictures, nothing that runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

from vision_rl.analysis.curves import read_log
from vision_rl.trainer.run_record import FILE as RECORD_FILE


MAX_PIXELS = 50_000_000  # of a sheet of completions
MAX_ROWS = 16  # of a table of them


@dataclass(frozen=True)
class RunFolder:
    """Args are empty where the run has not left them.

    Args:
        path: the folder.
        log: Trainer's log lines.
        record: `training.json`, or `run.json` of the experiments.
        rewards: name, weight and source of each reward, of `reward/rewards.json`.
        samples, noise: what `vision-rl analyze` has written into `analysis`.
        evaluated: `eval/metrics.json`, of `vision-rl eval`.
        sheets: pictures of completions by `log_completions`, or where it draws none its tables, as a step and a file.
    """

    path: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    rewards: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)
    sheets: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Raises FileNotFoundError for no folder, ValueError for a file that is not what it should be."""
        if not path.is_dir():
            raise FileNotFoundError(f"There is no run folder {path}.")
        record = _json(path / RECORD_FILE, dict) or _json(path / "run.json", dict)
        return cls(
            path,
            read_log(path),
            record,
            [each for each in _json(path / "reward" / "rewards.json", list) if isinstance(each, dict)],
            _json(path / "analysis" / "samples.json", dict),
            _json(path / "analysis" / "noise.json", dict),
            _json(path / "eval" / "metrics.json", dict),
            _sheets(path / "completions"),
        )


def open_sheet(path: Path) -> Image.Image:
    """The picture of a file, if it is one of a sensible size.

    Raises:
        ValueError: for anything else.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture of completions: {error}") from error


def read_completions(path: Path) -> list[dict[str, Any]]:
    """The first rows of a table of completions: `row_index`, `completion`, `reward`.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        table = parquet.read_table(path, columns=["row_index", "completion", "reward"])
        return table.slice(0, MAX_ROWS).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a table of completions: {error}") from error


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} should hold a {kind.__name__}; it holds a {type(content).__name__}.")
    return content


def _sheets(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """Find the sheets by what they show, such as `completions` or `eval_completions`, in the order of their steps."""
    sheets: dict[str, list[tuple[int, Path]]] = {}
    for path in [*folder.glob("*.png"), *folder.glob("*.parquet")]:
        if path.suffix == ".parquet" and path.with_suffix(".png").is_file():
            continue
        name, _, step = path.stem.rpartition("_")
        if name and step.isdigit():
            sheets.setdefault(name, []).append((int(step), path))
    return {name: sorted(files) for name, files in sorted(sheets.items())}
