"""Intervals by resampling the test images.

A column `(1 + R,)` holds one number for the images themselves, then one number for each of R resamples of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from runs import SPENT


Columns = Mapping[str, Sequence[np.ndarray]]  # for each name one column (1 + R,) a seed


def resampled_weights(count: int, num_resamples: int) -> np.ndarray:
    """How often each image counts, `(1 + R, count)`.

    In the first row each image counts once. The other rows are R resamples, which are the same for every model.
    """
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), num_resamples)
    return np.concatenate([np.ones((1, count), int), drawn])


def summary(values: Sequence[np.ndarray]) -> dict:
    """The mean over the seeds of columns `(1 + R,)`, its 95 % interval over resampled images, and each seed's number."""
    mean = np.mean(values, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5])
    rounded = [round(float(value[0]), 4) for value in values]
    return {"mean": round(float(mean[0]), 4), "interval": [round(low, 4), round(high, 4)], "seeds": rounded}


def summaries(columns: Mapping[str, Columns], costs: Mapping[str, list[dict[str, int]]]) -> dict[str, dict]:
    """For each row of the table its columns, and the steps and seconds of each seed."""
    return {
        row: {name: summary(values) for name, values in of_row.items()}
        | {spent: [run[spent] for run in costs[row]] for spent in SPENT}
        for row, of_row in columns.items()
    }


def differences(columns: Mapping[str, Columns], rows: Sequence[str], others: Sequence[str]) -> dict[str, dict]:
    """Each of `rows` minus each of `others`, on the same resamples, so that what the images contribute cancels out."""
    return {
        f"{row} - {other}": {
            name: summary([np.mean(columns[row][name], axis=0) - np.mean(columns[other][name], axis=0)])
            for name in columns[row]
            if name in columns[other]
        }
        for row in rows
        for other in others
    }
