"""A preference reward: the log-odds that people prefer an answer, from described features of it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision_rl.manifest import loading
from vision_rl.rewards import SavedReward


# features(completions=, image=, ...) -> numbers by name, one a completion
Features = Callable[..., Mapping[str, Sequence[float]]]

_FILE = Path("reward", "preference", "config.json")


@dataclass(frozen=True)
class FittedFeature:
    """What the choices say of one feature.

    Args:
        weight: of the feature in units of `scale`; 1 more of those units multiplies the odds of being preferred by e^weight.
        mean, scale: mean and standard deviation over the answers that were compared.
        low, high: its least and largest value among them.
    """

    weight: float
    mean: float
    scale: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How often a reward agrees with choices that it was not fitted to.

    Args:
        accuracy: share of the choices where the preferred answer has the larger reward; equal rewards count a half.
        interval: of 95 % (Wilson's), as if each choice were independent of the others.
        num_choices: that were made, num_images: of so many images, num_undecided: more, which preferred neither.
    """

    accuracy: float
    interval: tuple[float, float]
    num_choices: int
    num_images: int
    num_undecided: int = 0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"agrees with {self.accuracy:.1%} (95 %: {low:.1%} to {high:.1%}) of {self.num_choices} choices on {self.num_images} "
            "images, each judged by a fit without that image"
        )


class PreferenceReward(SavedReward):
    """The weighted sum of an answer's features, with the weights that explain people's choices (Bradley and Terry's model).

    `fit_preference_reward` makes one. Among the answers of an image the difference of two rewards is the log-odds that the
    first is preferred. Outside of what was compared nobody has said anything: each feature counts at most as far as it was
    seen, so that a model cannot earn without end by more of the same. The share of completions with a feature out there is
    logged as `beyond_choices`; when it is high, collect choices of the model as it is now.

    Args:
        features: `features(completions, **columns) -> {name: numbers, one a completion}`; `columns` are those that rewards get,
            with the image as `image`. A function of a module, or a small picklable class.
        fitted: what the choices say of each, by name.
        agreement: on choices that were left out.
    """

    def __init__(self, features: Features, fitted: Mapping[str, FittedFeature], agreement: Agreement):
        self.features, self.fitted, self.agreement = features, dict(fitted), agreement

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float]:
        """One number a completion.

        Args:
            completions: as the features take them.
            log_metric: the trainer's.
            columns: for the features.
        """
        names, values = feature_table(self.features, completions, columns)
        if names != list(self.fitted):
            raise ValueError(
                f"The features are {', '.join(names)}, but the reward was fitted to {', '.join(self.fitted)}: give it the "
                "features that it was fitted with, or fit a new reward."
            )
        weights, mean, scale, low, high = np.array([list(asdict(one).values()) for one in self.fitted.values()]).T
        inside = values.clip(low, high)  # (N, F)
        if log_metric is not None and len(values):
            log_metric("beyond_choices", float((inside != values).any(1).mean()))
        return ((inside - mean) / scale @ weights).tolist()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `reward/preference/config.json` into the folder: weights and ranges. The features are code, and are not in it."""
        path = Path(save_directory) / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        fitted = {name: asdict(feature) for name, feature in self.fitted.items()}
        content = {"features": fitted, "agreement": asdict(self.agreement)}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_pretrained(cls, save_directory: str | Path, features: Features) -> "PreferenceReward":
        """The reward that was saved in a model's folder, with the features that it was fitted with.

        Raises:
            FileNotFoundError: if there is none.
            DamagedFolder: if its file is not the one that was saved.
        """
        path = Path(save_directory) / _FILE
        if not path.is_file():
            raise FileNotFoundError(f"{save_directory} has no {_FILE}: no PreferenceReward was saved there.")
        with loading(path.parent):
            content = json.loads(path.read_text())
            fitted = {name: FittedFeature(**numbers) for name, numbers in content["features"].items()}
            if not fitted or not all(_is_usable(feature) for feature in fitted.values()):
                raise ValueError("its features have numbers that no fit gives")
            agreement = Agreement(**{**content["agreement"], "interval": tuple(content["agreement"]["interval"])})
            return cls(features, fitted, agreement)


def feature_table(
    features: Features, completions: Sequence, columns: Mapping[str, Any]
) -> tuple[list[str], np.ndarray]:
    """The names of the features, and their values `(N, F)`.

    Raises:
        ValueError: for what is no finite number a completion, with the feature.
    """
    described = features(completions=completions, **columns)
    if not isinstance(described, Mapping) or not described:
        raise ValueError(
            f"features(completions=...) must return numbers by name, {{'words': [3, 5]}}; it returned {described!r:.80}."
        )
    table = np.empty((len(completions), len(described)))
    for place, (name, numbers) in enumerate(described.items()):
        try:
            column = np.asarray(numbers, float)
        except (TypeError, ValueError):
            column = np.empty(0)
        if column.shape != (len(completions),) or not np.isfinite(column).all():
            raise ValueError(
                f"The feature {name!r} must have a finite number for each of {len(completions)} completions; it is {numbers!r:.80}."
            )
        table[:, place] = column
    return list(described), table


def _is_usable(feature: FittedFeature) -> bool:
    numbers = asdict(feature).values()
    good = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    return good and feature.scale > 0 and feature.low <= feature.high
