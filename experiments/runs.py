"""What the experiments share: trainings that are kept, intervals from resampling the test images, tables and pictures."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Trainer


# A constant rate after the warm-up, as in the paper, would leave every row with the noise of its last steps.
SHORT_TRAINING = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
SPENT = ("steps", "seconds")
Columns = Mapping[str, Sequence[np.ndarray]]  # for each name and seed (1 + R,): of the images, and of their resamples


def is_trained(folder: Path, settings: Mapping) -> bool:
    """Whether the folder has a finished model of these settings; see `record`.

    Raises:
        ValueError: if its model was trained with other settings, with those that differ.
    """
    if not (folder / "run.json").exists():
        return False
    recorded = json.loads((folder / "run.json").read_text()).get("settings", {})
    wanted = json.loads(json.dumps(settings))  # as it would be read back
    different = [
        f"{name} was {recorded.get(name, 'not recorded')!r} and is {wanted.get(name, 'not given')!r}"
        for name in {**recorded, **wanted}
        if name not in recorded or name not in wanted or recorded[name] != wanted[name]
    ]
    if different:
        raise ValueError(
            f"{folder} has a model of other settings: {'; '.join(different)}. Choose another work_dir, or remove the folder."
        )
    return True


def train_and_save(trainer: Trainer, settings: Mapping) -> None:
    """Train and save, with a record of it."""
    trainer.train()
    trainer.save_model()
    record(trainer, settings)


def record(trainer: Trainer, settings: Mapping) -> None:
    """Write `run.json` beside a model: with which settings it was trained, in how many steps and seconds.

    The steps are those to the best model if that is loaded.
    """
    steps = trainer.state.best_global_step if trainer.args.load_best_model_at_end else trainer.state.global_step
    seconds = next(log["train_runtime"] for log in reversed(trainer.state.log_history) if "train_runtime" in log)
    run = {"steps": steps, "seconds": round(seconds), "settings": settings}
    (Path(trainer.args.output_dir) / "run.json").write_text(json.dumps(run, indent=1))


def weights_of(folder: Path) -> str:
    """What tells the weights of a saved model from others, for the settings of what is trained from it."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cost(folder: Path) -> dict[str, int]:
    """Steps and seconds of the training that made a model; of a checkpoint 0."""
    run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    return {name: run.get(name, 0) for name in SPENT}


def best_rate(reached: Mapping[float, float]) -> tuple[float, dict]:
    """The learning rate that reaches most, and a record of what each reaches."""
    best = max(reached, key=lambda rate: reached[rate])
    return best, {"chosen": best, "validation": {f"{rate:g}": round(float(reached[rate]), 4) for rate in reached}}


def resampled_weights(count: int, num_resamples: int) -> np.ndarray:
    """How often each image counts, `(1 + R, count)`: once, then in R resamples, the same ones for every model."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), num_resamples)
    return np.concatenate([np.ones((1, count), int), drawn])


def summary(values: Sequence[np.ndarray]) -> dict:
    """The mean over seeds of `(1 + R,)` columns, its interval of 95 % over resampled images, and each seed."""
    mean = np.mean(values, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5])
    rounded = [round(float(value[0]), 4) for value in values]
    return {"mean": round(float(mean[0]), 4), "interval": [round(low, 4), round(high, 4)], "seeds": rounded}


def summaries(columns: Mapping[str, Columns], costs: Mapping[str, list[dict[str, int]]]) -> dict[str, dict]:
    """Each row's columns, and the steps and seconds of each seed."""
    return {
        row: {name: summary(values) for name, values in of_row.items()}
        | {spent: [run[spent] for run in costs[row]] for spent in SPENT}
        for row, of_row in columns.items()
    }


def differences(columns: Mapping[str, Columns], rows: Sequence[str], others: Sequence[str]) -> dict[str, dict]:
    """Each row less each other one, of the same resamples, so that their images cancel out."""
    return {
        f"{row} - {other}": {
            name: summary([np.mean(columns[row][name], axis=0) - np.mean(columns[other][name], axis=0)])
            for name in columns[row]
        }
        for row in rows
        for other in others
    }


def write_json(results: dict, path: str | Path) -> None:
    """Write the results, in a folder that need not be there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results, indent=1) + "\n")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def three_digits(name: str) -> str:
    """The format of a number in every column."""
    return ".3f"


def row_table(
    results: dict,
    titles: Mapping[str, str],
    label: Callable[[str], str],
    form: Callable[[str], str] = three_digits,
    over_seeds: Callable = np.mean,
) -> str:
    """The rows as Markdown: means over the seeds, and of steps and seconds what `over_seeds` says."""
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
    """What tuning gains, with intervals of 95 % over the test images, as Markdown."""
    rows = [
        [", over ".join(map(label, pair.split(" - "))), *(with_interval(values[name], form(name)) for name in titles)]
        for pair, values in results["differences"].items()
    ]
    return markdown(["", *titles.values()], rows)


def with_interval(value: dict, form: str) -> str:
    """A difference and its interval: `+0.020 [-0.016, +0.057]`."""
    low, high = value["interval"]
    return f"{value['mean']:+{form}} [{low:+{form}}, {high:+{form}}]"


def joined(pictures: Sequence[Image.Image], down: bool = False, gap: int = 6) -> Image.Image:
    """Pictures side by side, or one below the other."""
    places = np.cumsum([0] + [(picture.height if down else picture.width) + gap for picture in pictures])
    long, wide = int(places[-1]) - gap, max(picture.width if down else picture.height for picture in pictures)
    whole = Image.new("RGB", (wide, long) if down else (long, wide), "white")
    for picture, place in zip(pictures, places.tolist(), strict=False):
        whole.paste(picture, (0, place) if down else (place, 0))
    return whole
