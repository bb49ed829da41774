"""What a training step logs, under TRL's keys: pure functions of what all ranks drew and scored."""

import torch

from vision_rl.models.completions import SampledCompletions
from vision_rl.trainer.advantages import relative_to_largest
from vision_rl.trainer.reward_scaling import nan_std


def completion_record(
    completions: SampledCompletions, ends: list[int], rewards: torch.Tensor, per_function: torch.Tensor
) -> torch.Tensor:
    """Everything that is logged of `N` completions, in one tensor `(N, 4 + F)` that ranks can exchange at once.

    Args:
        completions: `(B, G, T)`.
        ends: the ids that end a completion by itself.
        rewards: `(B, G)`, per_function: `(B*G, F)`.
    """
    ids, mask, logps = (field.flatten(0, 1) for field in completions)  # (N, T)
    lengths = mask.sum(-1)
    columns = (lengths, ended(ids, mask, ends), logps.sum(-1), rewards.flatten(), *per_function.unbind(1))
    return torch.stack([column.float() for column in columns], dim=1)


def ended(completion_ids: torch.Tensor, completion_mask: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """Whether completions `(N, T)` have ended by themselves, `(N,)`. Without an end token all of them have."""
    last = completion_ids.gather(1, completion_mask.sum(-1, keepdim=True) - 1).squeeze(1)
    return torch.isin(last, last.new_tensor(ends)) if ends else torch.ones_like(last, dtype=torch.bool)


def step_metrics(record: torch.Tensor, num_generations: int, names: list[str]) -> tuple[dict[str, float], int]:
    """The metrics of the completions of a whole update step, and how many tokens they have.

    Args:
        record: `(N, 4 + F)` of `completion_record`, of all micro-batches and ranks.
        num_generations: G.
        names: of the F reward functions.
    """
    lengths, has_ended, logps, rewards, *per_function = record.unbind(1)
    metrics = completion_metrics(lengths, has_ended.bool(), logps)
    metrics |= reward_metrics(rewards.view(-1, num_generations), torch.stack(per_function, dim=1), names)
    return metrics, int(lengths.sum())


def completion_metrics(lengths: torch.Tensor, has_ended: torch.Tensor, logps: torch.Tensor) -> dict[str, float]:
    """The metrics of `N` completions, given `lengths (N,)`, `has_ended (N,)` and log-probabilities `logps (N,)`."""
    metrics = {"completions/clipped_ratio": (~has_ended).float().mean().item()}
    for name, values in (("", lengths), ("terminated_", lengths[has_ended])):
        if len(values):
            metrics[f"completions/mean_{name}length"] = values.mean().item()
            metrics[f"completions/min_{name}length"] = values.min().item()
            metrics[f"completions/max_{name}length"] = values.max().item()
    metrics["entropy"] = -(logps.sum() / lengths.sum()).item()  # of a token, as the samples themselves estimate it
    return metrics


def reward_metrics(rewards: torch.Tensor, per_function: torch.Tensor, names: list[str]) -> dict[str, float]:
    """The metrics of `rewards (B, G)` and their parts `per_function (B*G, F)`; NaN is left out."""
    metrics = {}
    for name, values in zip(names, per_function.unbind(1), strict=True):
        values = values[~values.isnan()]
        if len(values):
            metrics[f"rewards/{name}/mean"] = values.mean().item()
            metrics[f"rewards/{name}/std"] = nan_std(values).item()
    relative = relative_to_largest(rewards)
    spread = (relative - relative.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()  # (B,) within an image
    if not rewards.isnan().all():
        metrics["reward"] = rewards.nanmean().item()
        metrics["reward_std"] = nan_std(rewards).item()  # TRL's: of all samples
        metrics["reward_std_within_image"] = spread.nanmean().item()
        metrics["frac_reward_zero_std"] = (spread == 0).float().mean().item()  # images that teach nothing
    return metrics
