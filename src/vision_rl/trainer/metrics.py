"""What a training step logs, under TRL's keys. Pure functions of what all ranks drew and scored."""

import torch


def completion_metrics(lengths: torch.Tensor, ended: torch.Tensor, logps: torch.Tensor) -> dict[str, float]:
    """Of `N` completions: `lengths (N,)`, whether they `ended (N,)` by themselves, log-probabilities `logps (N,)`."""
    lengths = lengths.float()
    metrics = {"completions/clipped_ratio": (~ended).float().mean().item()}
    for name, values in (("", lengths), ("terminated_", lengths[ended])):
        if len(values):
            metrics[f"completions/mean_{name}length"] = values.mean().item()
            metrics[f"completions/min_{name}length"] = values.min().item()
            metrics[f"completions/max_{name}length"] = values.max().item()
    metrics["entropy"] = -(logps.sum() / lengths.sum()).item()  # of a token, as the samples themselves estimate it
    return metrics


def reward_metrics(rewards: torch.Tensor, per_function: torch.Tensor, names: list[str]) -> dict[str, float]:
    """Of `rewards (B, G)` and their parts `per_function (B*G, F)`; NaN is left out."""
    metrics = {}
    for name, values in zip(names, per_function.unbind(1), strict=True):
        values = values[~values.isnan()]
        if len(values):
            metrics[f"rewards/{name}/mean"] = values.mean().item()
            metrics[f"rewards/{name}/std"] = values.std(correction=0).item()
    spread = (rewards - rewards.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()  # (B,) within an image
    if not rewards.isnan().all():
        metrics["reward"] = rewards.nanmean().item()
        metrics["reward_std"] = spread.nanmean().item()
        metrics["frac_reward_zero_std"] = (spread < 1e-6).float().mean().item()  # images that teach nothing
    return metrics
