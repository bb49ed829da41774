"""What a reader of the log should not have to find out by himself, said once."""

import logging
from collections import deque
from statistics import fmean, stdev

from transformers import TrainerCallback

from vision_rl.trainer.reward_config import VisionRewardConfig


logger = logging.getLogger(__name__)

WINDOW = 10  # log lines that are looked at together
RATIO_TOLERANCE = 1e-3  # in float32 the policy that learns is the one that sampled, but for rounding


class RunWatch(TrainerCallback):
    """Points out, each once a run: a gradient that is always clipped, a reward that is being lost, two policies.

    The reward is judged by its mean over ten log lines. It is being lost when that has come back half of the way from its
    best to what it was at the start, and the way was longer than what such lines differ by anyway.
    """

    def __init__(self, args: VisionRewardConfig):
        self.exact = not (args.bf16 or args.fp16) and args.disable_dropout
        self._restart()

    def _restart(self) -> None:
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.rewards: deque[float] = deque(maxlen=WINDOW)
        self.start: tuple[float, float] | None = None  # mean and spread of the first rewards
        self.best, self.best_step = float("-inf"), 0
        self.said: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self._restart()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        if args.max_grad_norm and "grad_norm" in logs:
            self._look_at_gradient(float(logs["grad_norm"]), args.max_grad_norm)
        if "reward" in logs:
            self._look_at_reward(logs["reward"], state.global_step)
        if self.exact and logs.get("sampling/ratio_error", 0.0) > RATIO_TOLERANCE:
            self._say(
                "ratio",
                "The policy that learns is not the one that sampled: the ratio of their probabilities differs from 1 by "
                f"{logs['sampling/ratio_error']:.2g} before any update. Does the model compute something else with a cache "
                "or in training mode?",
            )

    def _look_at_gradient(self, norm: float, limit: float) -> None:
        self.norms.append(norm)
        if len(self.norms) == WINDOW and min(self.norms) > limit:
            self._say(
                "gradient",
                f"max_grad_norm={limit:g} has cut the gradient at each of the last {WINDOW} log lines (its norm was "
                f"{min(self.norms):.3g} to {max(self.norms):.3g}): every step then has the same length, whatever the "
                "rewards say. Raise max_grad_norm, or lower learning_rate instead.",
            )

    def _look_at_reward(self, reward: float, step: int) -> None:
        self.rewards.append(reward)
        if len(self.rewards) < WINDOW:
            return
        now = fmean(self.rewards)
        if self.start is None:
            self.start = now, stdev(self.rewards)
        if now >= self.best:
            self.best, self.best_step = now, step
        first, spread = self.start
        gain = self.best - first
        if gain > max(spread, stdev(self.rewards)) and now < first + gain / 2:
            self._say(
                "reward",
                f"The reward has lost half of what it had gained: {now:.4g} over the last {WINDOW} log lines, {first:.4g} "
                f"at the start, {self.best:.4g} at best around step {self.best_step}. Start a new run from a "
                "checkpoint of before, given as `model`, with a lower learning_rate or more images per step.",
            )

    def _say(self, what: str, sentence: str) -> None:
        if what not in self.said:
            logger.warning(sentence)
        self.said.add(what)
