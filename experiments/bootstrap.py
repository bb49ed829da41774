"""Intervals by resampling the test images: `(1 + R,)` columns hold a number of the images, and of R resamples of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from runs import SPENT


Columns = Mapping[str, Sequence[np.ndarray]]  # for each name, (1 + R,) of each seed


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
            if name in columns[other]
        }
        for row in rows
        for other in others
    }
