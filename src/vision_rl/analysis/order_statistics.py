"""What the best, or the likeliest, of n samples earns, without bias, from N samples of each image.

The plain way, to cut N samples into groups of n, leaves most of what they say unused, and to take the best of the first n
is noise. Every group of n out of N is as good as any other, so the mean over all of them is taken; it needs no
enumeration: among all groups, the sample of rank i is the largest of C(i - 1, n - 1). This is the estimator of pass@k
(Chen et al. 2021) for rewards that are numbers.
"""

import numpy as np
from scipy.special import gammaln


def rank_weights(num_samples: int, n: int) -> np.ndarray:
    """`(N,)`: the share of all groups of `n` out of N in which the sample of each rank, from 1, is the largest.

    Raises:
        ValueError: for n below 1 or above N.
    """
    if not 1 <= n <= num_samples:
        raise ValueError(f"n must be from 1 to the number of samples, which is {num_samples}; it is {n}.")
    ranks = np.arange(n, num_samples + 1)
    logs = _log_choose(ranks - 1, n - 1) - _log_choose(num_samples, n)
    return np.concatenate([np.zeros(n - 1), np.exp(logs)])


def best_of_n(rewards: np.ndarray, n: int) -> np.ndarray:
    """`(B,)`: the expected largest reward of n samples, of `rewards (B, N)`."""
    rewards = np.asarray(rewards, np.float64)
    return np.sort(rewards, axis=1) @ rank_weights(rewards.shape[1], n)


def likeliest_of_n(rewards: np.ndarray, logps: np.ndarray, n: int) -> np.ndarray:
    """`(B,)`: the expected reward of the likeliest of n samples, of `rewards (B, N)` with log-probabilities `logps (B, N)`.

    Samples that are equally likely, as copies of one are, come in any order: their mean counts.
    """
    rewards, logps = np.asarray(rewards, np.float64), np.asarray(logps)
    ranked = np.stack([_by_likelihood(*row) for row in zip(rewards, logps, strict=True)])
    return ranked @ rank_weights(rewards.shape[1], n)


def sizes_up_to(num_samples: int) -> list[int]:
    """The n that are worth a point on a logarithmic axis: 1, 2, 5, 10, 20, 50, ... and N."""
    steps = [factor * 10**power for power in range(len(str(num_samples))) for factor in (1, 2, 5)]
    return [*(n for n in steps if n < num_samples), num_samples]


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean of `values (B,)` and its standard error; None of a single one."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.mean()), None if error is None else float(error)


def _by_likelihood(rewards: np.ndarray, logps: np.ndarray) -> np.ndarray:
    """Rewards `(N,)`, the least likely first; each that of its whole group of equally likely ones."""
    _, group, counts = np.unique(logps, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=rewards) / counts
    return np.repeat(means, counts)


def _log_choose(total: np.ndarray | int, chosen: int) -> np.ndarray:
    return gammaln(np.add(total, 1)) - gammaln(chosen + 1) - gammaln(np.subtract(total, chosen) + 1)
