"""What the update steps since the last log line have shown, on all ranks."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerState

from vision_rl.trainer.metrics import step_metrics
from vision_rl.trainer.reward_config import VisionRewardConfig
from vision_rl.trainer.timing import StepClock


PATIENCE = 10  # update steps without a reward, after which a run ends: some rewards apply to few rows


class StepLog:
    """Collects tensors of this rank's micro-batches, and once an update step makes metrics of all ranks' together.

    Args:
        accelerator: exchanges them.
        clock: of the parts of a step.
        args: the trainer's options.
    """

    def __init__(self, accelerator: Accelerator, clock: StepClock, args: VisionRewardConfig):
        self.accelerator, self.clock, self.args = accelerator, clock, args
        self.recorded: dict[str, list[torch.Tensor]] = defaultdict(list)  # on this rank, in this update step
        self.metrics: dict[str, list[float]] = defaultdict(list)  # a value an update step, since the last log line
        self.of_rewards: dict[str, list[float]] = defaultdict(list)  # what rewards have logged, on this rank
        self.restart(step=0)

    def restart(self, step: int) -> None:
        """Begin a training at this update step. Numbers that an earlier training has not logged are forgotten."""
        for kept in (self.recorded, self.metrics, self.of_rewards):
            kept.clear()
        self.clock.read()
        self.seconds, self._inside = 0.0, False
        self.drawn, self.rewarded = False, step > 0  # a run that goes on is known to have had rewards

    def record(self, name: str, values: torch.Tensor) -> None:
        """Keep `values (n, ...)` of a micro-batch. Every rank must record as many of them in each update step."""
        self.recorded[name].append(values.detach())

    def log_metrics(self, logged: dict[str, float]) -> None:
        """Keep the numbers that rewards have passed to `log_metric`."""
        for name, value in logged.items():
            self.of_rewards[name].append(value)

    def end_step(self, state: TrainerState, reward_names: list[str]) -> None:
        """Make metrics of the whole update step from what all ranks have recorded in it."""
        gathered = self.accelerator.gather({name: torch.cat(parts) for name, parts in self.recorded.items()})
        self.recorded.clear()
        recorded = {name: values.cpu() for name, values in gathered.items()}
        metrics: dict[str, float] = {"step_time": self.seconds}
        if "completions" in recorded:
            drawn, num_tokens = step_metrics(recorded["completions"], self.args.num_generations, reward_names)
            metrics |= drawn
            state.num_input_tokens_seen += num_tokens
            self.metrics["num_tokens"] = [state.num_input_tokens_seen]
        if "kl" in recorded:
            kl, num_tokens = recorded["kl"].double().sum(0).tolist()
            metrics["kl"], metrics["kl_per_completion"] = kl / num_tokens, kl / len(recorded["kl"])
        if "learned" in recorded:
            metrics |= self._learned(*recorded["learned"].unbind(1))
        for name, value in metrics.items():
            self.metrics[name].append(value)
        self.seconds = 0.0

    def _learned(self, policy, targets, difference, ratio_error, low, high, count) -> dict[str, float]:
        """The metrics of learning, from the columns of `CompletionLoss.record`, each `(M,)` for M micro-batches."""
        metrics = {"loss/policy": policy.sum().item() / self.accelerator.num_processes}  # which are averaged
        if targets.any():
            metrics["loss/token_targets"] = targets.sum().item() / self.accelerator.num_processes
        if not difference.isnan().any():  # the policy is that which sampled
            metrics["sampling/sampling_logp_difference/max"] = difference.max().item()
            metrics["sampling/ratio_error"] = ratio_error.max().item()
        return metrics | (_clip_ratios(low, high, count) if self.args.updates_per_rollout > 1 else {})

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside as time of this update step. A block within another is counted once."""
        start, inside = time.perf_counter(), self._inside
        self._inside = True
        try:
            yield
        finally:
            self._inside = inside
            if not inside:
                self.clock.enter(None)
            self.seconds += 0.0 if inside else time.perf_counter() - start

    def check_rewarded(self, step: int, reward_names: list[str], ended: bool) -> None:
        """Raise if no completion of the run has had a reward, as it ends or after some steps.

        Rows to which no reward applies are no error by themselves.
        """
        self.rewarded = self.rewarded or bool(self.metrics.get("reward"))
        self.drawn = self.drawn or "num_tokens" in self.metrics  # else an override of `_score` does it all
        if self.drawn and not self.rewarded and (ended or step >= PATIENCE):
            raise ValueError(
                f"Every reward ({', '.join(reward_names)}) was None for all completions of the first "
                f"{step} steps: nothing can be learned from them."
            )

    def read(self) -> dict[str, float]:
        """Return means over the update steps since the last reading, and the seconds of a step's parts. Every rank must call it."""
        num_steps, of_ranks = len(self.metrics.get("step_time", [0])), gather_object([dict(self.of_rewards)])
        for name in sorted({name for of_rank in of_ranks for name in of_rank}):
            self.metrics[name] = [value for of_rank in of_ranks for value in of_rank.get(name, ())]
        means = {name: sum(values) / len(values) for name, values in self.metrics.items()}
        means |= {f"timing/{part}": seconds / num_steps for part, seconds in self.clock.read().items()}
        self.metrics.clear()
        self.of_rewards.clear()
        return means


def _clip_ratios(low: torch.Tensor, high: torch.Tensor, count: torch.Tensor) -> dict[str, float]:
    """TRL's clip ratios. `low` and `high (M,)` are the sequences or tokens of M micro-batches that were clipped, of `count (M,)`."""
    total = count.sum()
    return {
        "clip_ratio/low_mean": (low.sum() / total).item(),
        "clip_ratio/low_min": (low / count).min().item(),
        "clip_ratio/high_mean": (high.sum() / total).item(),
        "clip_ratio/high_max": (high / count).max().item(),
        "clip_ratio/region_mean": ((low + high).sum() / total).item(),
    }
