"""The noise of the gradients that a reward trainer would take, by each baseline, from the same samples."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vision_rl.analysis.noise import GradientNoise, Sketch, noise_of
from vision_rl.trainer import advantages as baselines
from vision_rl.trainer.encoding import images_of
from vision_rl.trainer.reward_scaling import scaled_over_rollout
from vision_rl.trainer.reward_trainer import VisionRewardTrainer
from vision_rl.trainer.rollout import Rollout


PREFIX_REWARDS, TOKEN_TARGETS, WHOLE_UPDATE = "prefix rewards", "token targets", "update as configured"


def gradient_noise(
    trainer: VisionRewardTrainer, num_batches: int = 60, told: Callable[[int], None] = lambda batches: None
) -> list[GradientNoise]:
    """Measure each estimator's noise, from up to `num_batches` batches of `per_device_train_batch_size` images.

    Every baseline judges the same samples; where a reward has prefix rewards, with and without them. Rewards that supply
    token targets have a line for these alone, and the last line is the update as the trainer's options make it, which
    includes them, and KL, entropy and labels if the options do; where advantages are scaled over a rollout, that is the
    batch. Nothing is learned.

    Args:
        trainer: with a `train_dataset`, of which each image is used at most once, and `num_generations` of at least 2.
        num_batches: more of them narrow the intervals.
        told: is called with how many batches are done.

    Raises:
        ValueError: for fewer than 4 batches of training images, a single sample an image, or several processes.
    """
    if trainer.accelerator.num_processes > 1:
        raise ValueError("Gradients are compared on one process: start without `accelerate launch` or torchrun.")
    if trainer.num_generations < 2:
        raise ValueError(
            f"num_generations must be at least 2, as most baselines need other samples of the same image; it is "
            f"{trainer.num_generations}."
        )
    model, step = trainer.model, trainer.state.global_step
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sketch = Sketch(sum(parameter.numel() for parameter in parameters))
    sketches: dict[str, list[torch.Tensor]] = defaultdict(list)
    model.train()
    for number, batch in zip(range(num_batches), batches_of_new_images(trainer), strict=False):
        for name, loss in losses_of(trainer, batch):
            gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            sketches[name].append(sketch(gradient))
        trainer.step_log.restart(step)  # a log line is never written, and would collect all of it
        told(number + 1)
    images = trainer.args.per_device_train_batch_size
    if len(next(iter(sketches.values()), ())) < 4:
        raise ValueError(f"There are fewer than 4 batches of {images} training images: lower the batch size.")
    return [noise_of(name, gradients, images) for name, gradients in sketches.items()]


def batches_of_new_images(trainer: VisionRewardTrainer) -> Iterator[dict]:
    """Yield an epoch's batches, but none with an image that came before: with `num_iterations` each block comes again.

    Batches of the same images have the same samples, so that the products of their gradients would count noise as signal.
    """
    seen: set[int] = set()
    for batch in trainer.get_train_dataloader():
        rows = batch["row_index"].tolist()
        if seen.isdisjoint(rows):
            seen.update(rows)
            yield trainer._prepare_inputs(batch)


def losses_of(trainer: VisionRewardTrainer, batch: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """The losses whose gradients are compared, one after the other, by name; all are means over the completions."""
    completions = trainer._sample(batch)
    rewards, targets = trainer._score(completions, batch)
    greedy = trainer.rollout_sampler.greedy_rewards(rewards, batch)
    advantages = trainer._advantages(rewards, completions, batch)
    rollout = Rollout(batch["row_index"], completions, rewards, advantages, targets, trainer.state.global_step)
    rollout = scaled_over_rollout(rollout, trainer.args, trainer.accelerator.gather)
    trainer.rollout_sampler.forget()  # images were encoded without gradient

    def policy_loss(weights: torch.Tensor, token_targets: list) -> torch.Tensor:
        learned = trainer._policy_loss(trainer.model, images_of(batch), completions, weights, token_targets, False)
        return learned.loss / weights.shape[:2].numel()

    per_token = rewards.ndim == 3
    of_samples = rewards[..., 0] if per_token else rewards
    for name, weights in advantages_by_baseline(of_samples, greedy[..., 0] if per_token else greedy):
        yield name, policy_loss(weights, [])
    if per_token:
        for name, weights in advantages_by_baseline(rewards, greedy):
            yield f"{name}, {PREFIX_REWARDS}", policy_loss(weights, [])
    if targets:
        yield TOKEN_TARGETS, policy_loss(torch.zeros_like(of_samples), targets)
    yield WHOLE_UPDATE, trainer._learn(trainer.model, batch, completions, rollout.advantages, targets)


def advantages_by_baseline(rewards: torch.Tensor, greedy: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the advantages of each `baseline`, by name, scaled so that all but `mean` have one expected gradient."""
    yield "leave_one_out", baselines.leave_one_out_advantages(rewards)
    yield "first", rewards.shape[1] * baselines.first_advantages(rewards)  # the mean is over the one that learns
    yield "greedy", baselines.greedy_advantages(rewards, greedy)
    yield "mean", baselines.mean_advantages(rewards)  # expects (G - 1) / G of it
    yield "none", baselines.no_baseline_advantages(rewards)
