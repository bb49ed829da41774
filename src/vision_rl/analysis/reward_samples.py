"""The rewards of N samples an image, and of the greedy answer: what a policy has in store (paper, section 5, figure 5)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vision_rl.analysis.order_statistics import best_of_n, likeliest_of_n, mean_and_error, sizes_up_to
from vision_rl.models.completions import SampledCompletions
from vision_rl.randomness import uniform_table
from vision_rl.trainer.evaluation import model_for_evaluation, of_all_ranks
from vision_rl.trainer.reward_trainer import VisionRewardTrainer


LEVELS = [round(0.01 * level, 2) for level in range(101)]  # of the quantiles


@dataclass(frozen=True)
class RewardSamples:
    """Rewards and log-probabilities of N samples of each of B images, of which every sample was scored.

    Args:
        row_index: `(B,)`, their places in the data set.
        rewards: `(B, N)` of the samples. logps: `(B, N)`, the samples' log-probabilities.
        greedy: `(B,)`, rewards of the greedy answers.
        left_out: how many images more had an answer that no reward applied to.
    """

    row_index: np.ndarray
    rewards: np.ndarray
    logps: np.ndarray
    greedy: np.ndarray
    left_out: int = 0

    @property
    def num_samples(self) -> int:
        return self.rewards.shape[1]

    def summary(self) -> dict[str, Any]:
        """Means over the images as plain numbers, with standard errors: of quantiles, best of n, likeliest of n."""
        sizes = sizes_up_to(self.num_samples)
        quantiles = np.quantile(self.rewards, LEVELS, axis=1)  # (L, B)
        return {
            "images": len(self.rewards),
            "images_left_out": self.left_out,
            "samples": self.num_samples,
            "greedy": _point(self.greedy),
            "sampled": _point(self.rewards.mean(1)),
            "std_within_image": float(self.rewards.std(1).mean()),
            "quantiles": {"levels": LEVELS, **_points(quantiles)},
            "best_of_n": {"n": sizes, **_points([best_of_n(self.rewards, n) for n in sizes])},
            "likeliest_of_n": {"n": sizes, **_points([likeliest_of_n(self.rewards, self.logps, n) for n in sizes])},
        }


def sample_rewards(
    trainer: VisionRewardTrainer,
    dataset: Any,
    num_samples: int,
    completions_at_once: int = 256,
    told: Callable[[int], None] = lambda images: None,
) -> RewardSamples:
    """Draw and score `num_samples` completions of each image; of a sample only two numbers are kept.

    The samples are the same whatever `completions_at_once`, the batch or the ranks: each has its own random numbers.

    Args:
        trainer: of the model, with its rewards; it does not train.
        dataset: rows as for its evaluation.
        num_samples: N.
        completions_at_once: most that are in memory at the same time, on each process.
        told: is called with how many images of this process are done.

    Raises:
        ValueError: for fewer than one sample, or if no image has all of its answers scored.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; it is {num_samples}.")
    model_for_evaluation(trainer, trainer.gathers_weights()).eval()
    records: list[dict[str, Any]] = []
    for batch in trainer.get_eval_dataloader(dataset):
        records += _of_batch(trainer, trainer._prepare_inputs(batch), num_samples, completions_at_once)
        told(len(records))
    records = of_all_ranks(records)
    scored = [record for record in records if not np.isnan([*record["rewards"], record["greedy"]]).any()]
    if not scored:
        raise ValueError("The rewards were None for the answers to every image: there is nothing to look at.")
    return RewardSamples(
        np.array([record["index"] for record in scored]),
        np.stack([record["rewards"] for record in scored]),
        np.stack([record["logps"] for record in scored]),
        np.array([record["greedy"] for record in scored]),
        len(records) - len(scored),
    )


@torch.no_grad()
def _of_batch(trainer: VisionRewardTrainer, batch: dict, num_samples: int, at_once: int) -> list[dict[str, Any]]:
    rows, length = batch["row_index"], trainer.max_completion_length
    rewards, logps = np.empty((2, len(rows), num_samples), np.float32)
    encoded = trainer.rollout_sampler.encoded(batch)  # each image once
    greedy, _ = _scored(trainer, trainer.complete(encoded, do_sample=False), batch)
    step = max(1, at_once // len(rows))
    for first in range(0, num_samples, step):
        count = min(step, num_samples - first)
        uniforms = uniform_table(trainer.data_seed, 0, rows, count, length, first)
        drawn = trainer.complete(encoded, count, temperature=trainer.temperature, uniforms=uniforms)
        rewards[:, first : first + count], logps[:, first : first + count] = _scored(trainer, drawn, batch)
    trainer.rollout_sampler.forget()
    return [
        {"index": row, "rewards": rewards[place], "logps": logps[place], "greedy": float(greedy[place, 0])}
        for place, row in enumerate(rows.tolist())
    ]


def _scored(
    trainer: VisionRewardTrainer, completions: SampledCompletions, batch: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The rewards `(B, G)`, NaN where none applies, and the log-probabilities `(B, G)`."""
    objects, ids = trainer.decode(completions, batch)
    scores = trainer.reward(objects, ids, batch["columns"], batch["row_index"].tolist(), trainer.state)
    logps = completions.per_token_logps.sum(-1)  # 0 behind the end
    return scores.rewards.view(logps.shape).numpy(), logps.cpu().numpy()


def _point(values: np.ndarray) -> dict[str, float | None]:
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error}


def _points(values: Any) -> dict[str, list]:
    """Return means and standard errors of several arrays `(B,)`, one after the other."""
    pairs = [mean_and_error(each) for each in values]
    return {"mean": [mean for mean, _ in pairs], "error": [error for _, error in pairs]}
