"""Fitting a reward to choices: Bradley and Terry's model, and how well it foretells choices that it has not seen."""

import logging
import math
from collections.abc import Iterable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from vision_rl.preferences.choices import Choice
from vision_rl.preferences.reward import Agreement, Features, FittedFeature, PreferenceReward, feature_table


logger = logging.getLogger(__name__)

LEAST_CHOICES = 30  # with fewer the interval of the agreement is wider than 0.3: it says nothing
LEAST_IMAGES = 10
NUM_FOLDS = 5


def fit_preference_reward(
    choices: Iterable[Choice], features: Features, l2: float = 1.0, seed: int = 0
) -> PreferenceReward:
    """A reward whose differences are the log-odds of the choices, and its agreement with choices that were left out.

    The probability that A is preferred to B is sigmoid(reward(A) - reward(B)), Bradley and Terry (1952). The reward is linear
    in the features: tens to hundreds of choices are enough for its weights, which anybody can read, and too few for a network's.
    For the agreement the images are dealt into five parts, and each part's choices are foretold by a fit to the other four;
    the reward that is returned is then fitted to all. Choices of neither answer are counted and not fitted.

    Args:
        choices: such as `ChoiceFile("choices.jsonl").read()`.
        features: see `PreferenceReward`; called with the two completions of a choice and its `image`, twice.
        l2: weights are drawn towards 0 as by a normal prior of variance 1 / l2, in units of a feature's spread.
        seed: of the five parts.

    Returns:
        The reward, with `agreement`. A warning tells where it is not better than a coin.

    Raises:
        ValueError: for too few choices or images, features that are no numbers, and features that are equal in all answers.
    """
    if not l2 > 0:
        raise ValueError(
            f"l2 must be positive; it is {l2}. Without it, a feature that is always right has no finite weight."
        )
    names: list[str] = []
    tables, images, num_undecided = [], [], 0
    for choice in choices:
        if choice.better is None:
            num_undecided += 1
            continue
        names_here, table = feature_table(features, list(choice.pair.completions), {"image": [choice.pair.image] * 2})
        if names and names_here != names:
            raise ValueError(
                f"One answer has the features {names} and another has {names_here}: return the same features for all."
            )
        names = names_here
        tables.append(table[[choice.better, 1 - choice.better]])  # (2, F), the better one first
        images.append(choice.pair.image_id)
    num_images = len(set(images))
    if len(tables) < LEAST_CHOICES or num_images < LEAST_IMAGES:
        raise ValueError(
            f"There are {len(tables)} choices on {num_images} images, besides {num_undecided} of neither answer. A "
            f"reward needs at least {LEAST_CHOICES} choices on {LEAST_IMAGES} images, and some hundreds to be good: "
            "judge more pairs."
        )
    answers = np.stack(tables)  # (N, 2, F)
    mean, scale = answers.mean((0, 1)), answers.std((0, 1))
    if not (answers[:, 0] != answers[:, 1]).any():
        raise ValueError(
            f"The two answers are equal in all features ({', '.join(names)}) of every choice: take other features."
        )
    scale = np.where(scale > 1e-9 * (1 + abs(mean)), scale, 1.0)  # a feature that is always the same has weight 0
    differences = (answers[:, 0] - answers[:, 1]) / scale  # (N, F)

    right = np.empty(len(differences))
    part_of = dict(
        zip(sorted(set(images)), np.random.default_rng(seed).permutation(num_images) % NUM_FOLDS, strict=True)
    )
    parts = np.array([part_of[image] for image in images])
    for part in range(NUM_FOLDS):
        margins = differences[parts == part] @ _weights(differences[parts != part], l2)
        right[parts == part] = (np.sign(margins) + 1) / 2
    agreement = Agreement(float(right.mean()), wilson(right.sum(), len(right)), len(right), num_images, num_undecided)
    if agreement.interval[0] <= 0.5:
        logger.warning(
            "The preference reward %s: it is no better than tossing a coin. Collect more choices, or take other features.",
            agreement,
        )

    columns = (_weights(differences, l2), mean, scale, answers.min((0, 1)), answers.max((0, 1)))
    fitted = {name: FittedFeature(*map(float, one)) for name, *one in zip(names, *columns, strict=True)}
    return PreferenceReward(features, fitted, agreement)


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which is sensible at 0 and 1 too."""
    z, share = 1.96, successes / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def _weights(differences: np.ndarray, l2: float) -> np.ndarray:
    """The weights `(F,)` that are most likely after choices whose better answer has so much more of each feature `(N, F)`."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ weights  # (N,)
        value = np.logaddexp(0, -margins).sum() + l2 * weights @ weights / 2
        return value, -expit(-margins) @ differences + l2 * weights

    return minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x
