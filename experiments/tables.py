"""Results as JSON files, and as the Markdown tables of the documentation."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from runs import SPENT


def write_json(results: dict, path: str | Path) -> None:
    """Write the results; the folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results, indent=1) + "\n")


def read_json(path: str | Path) -> dict:
    """The content of a JSON file."""
    return json.loads(Path(path).read_text())


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def three_digits(name: str) -> str:
    """The format of numbers where every column has the same: three digits."""
    return ".3f"


def row_table(
    results: dict,
    titles: Mapping[str, str],
    label: Callable[[str], str],
    form: Callable[[str], str] = three_digits,
    over_seeds: Callable = np.mean,
) -> str:
    """The rows as Markdown: means over the seeds, except for steps and seconds, which `over_seeds` combines."""
    rows = []
    for row, values in results["rows"].items():
        numbers = [f"{values[name]['mean']:{form(name)}}" if name in values else "" for name in titles]
        spent = [f"{over_seeds(values[name]):.0f}" if values[name] else "" for name in SPENT]
        rows.append([label(row), *numbers, *spent])
    return markdown(["", *titles.values(), *SPENT], rows)


def difference_table(
    results: dict,
    titles: Mapping[str, str],
    label: Callable[[str], str],
    form: Callable[[str], str] = three_digits,
) -> str:
    """What tuning gains, with 95 % intervals over the test images, as Markdown."""
    rows = [
        [
            ", over ".join(map(label, pair.split(" - "))),
            *(with_interval(values[name], form(name)) if name in values else "" for name in titles),
        ]
        for pair, values in results["differences"].items()
    ]
    return markdown(["", *titles.values()], rows)


def with_interval(value: dict, form: str) -> str:
    """A difference and its interval: `+0.020 [-0.016, +0.057]`."""
    low, high = value["interval"]
    return f"{value['mean']:+{form}} [{low:+{form}}, {high:+{form}}]"
