"""What the experiments share: intervals from resampling the test images, and what a training cost."""

import json
from pathlib import Path

import numpy as np


def resampled_weights(count: int, num_resamples: int) -> np.ndarray:
    """How often each image counts, `(1 + R, count)`: once, then in R resamples, the same ones for every model."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), num_resamples)
    return np.concatenate([np.ones((1, count), int), drawn])


def summary(values: list[np.ndarray]) -> dict:
    """The mean over seeds of `(1 + R,)` columns, its interval of 95 % over resampled images, and each seed."""
    mean = np.mean(values, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5])
    rounded = [round(float(value[0]), 4) for value in values]
    return {"mean": round(float(mean[0]), 4), "interval": [round(low, 4), round(high, 4)], "seeds": rounded}


def cost(folder: Path) -> dict[str, int]:
    """Steps and seconds of the training that made a model; of a checkpoint 0."""
    run = folder / "run.json"
    return json.loads(run.read_text()) if run.exists() else {"steps": 0, "seconds": 0}
