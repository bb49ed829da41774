"""The greedy answers of a model to a data set, with what each of them earned: what a report compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.analysis.noise import CONFIDENCE
from vision_rl.analysis.order_statistics import mean_and_error
from vision_rl.trainer.evaluation import records_of
from vision_rl.trainer.vision_trainer import VisionTrainer


@dataclass(frozen=True)
class Answers:
    """The answers of one model to N images, in the data set's order.

    Args:
        completions: N decoded objects.
        draw: `draw(image, completion, reference, width) -> picture`: its processor's.
        rewards: `(N,)`, NaN where none applied; None where nothing was rewarded.
        metrics: of all of them together.
    """

    completions: Sequence
    draw: Callable[[Image.Image, Any, Any, int | None], Image.Image]
    rewards: np.ndarray | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The answers of a model, and of the one before it, to the same images.

    Args:
        images: N pictures in any form that a row may hold. references: N true answers, or None.
        after: the model's answers. before: those of the one that it started from, if there is one.
        reward: the name of what is rewarded.
    """

    images: Sequence
    references: Sequence | None
    after: Answers
    before: Answers | None = None
    reward: str = "reward"

    def changes(self) -> np.ndarray | None:
        """`(N,)`: what each image's answer earns more than before; NaN where one was not scored; None without both."""
        if self.before is None or self.before.rewards is None or self.after.rewards is None:
            return None
        return np.asarray(self.after.rewards, float) - np.asarray(self.before.rewards, float)


@dataclass(frozen=True)
class Change:
    """A mean change over images, with its 95 % interval, and of how many images it is."""

    mean: float
    low: float
    high: float
    gained: int
    lost: int
    same: int

    @staticmethod
    def of(changes: np.ndarray) -> "Change | None":
        """Summarize `changes (N,)`, where NaN is left out; None for fewer than two."""
        known = changes[~np.isnan(changes)]
        if len(known) < 2:
            return None
        mean, error = mean_and_error(known)
        margin = CONFIDENCE * (error or 0.0)
        small = 1e-6 * max(1.0, float(np.abs(known).max()))  # rounding
        gained, lost = int((known > small).sum()), int((known < -small).sum())
        return Change(mean, mean - margin, mean + margin, gained, lost, len(known) - gained - lost)

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def answers_of(trainer: VisionTrainer, dataset: Any) -> tuple[Answers, list | None]:
    """The answers of the trainer's model to the rows of `dataset`, judged by its rewards and metric; and the references.

    Args:
        trainer: a `VisionRewardTrainer`, or a `VisionMLETrainer` whose answers earn nothing.
        dataset: rows as for its evaluation.
    """
    trainer._predicting = True  # completions are kept, whatever the metric
    try:
        records = records_of(trainer, trainer.get_eval_dataloader(dataset))
    finally:
        trainer._predicting = False
    metrics = trainer._evaluation_metrics(records)
    rewards = np.array([record["reward"] for record in records]) if "reward" in records[0] else None
    references = [record["reference"] for record in records]
    completions = [record["completion"] for record in records]
    known = all(reference is not None for reference in references)
    return Answers(completions, trainer.processor.draw, rewards, metrics), references if known else None
