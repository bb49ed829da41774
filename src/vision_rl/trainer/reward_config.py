"""Options of step 2, reward tuning. The defaults are the paper's, the names TRL's wherever TRL has one."""

from dataclasses import dataclass, field
from typing import Literal

from vision_rl.trainer.vision_config import WATCHING_SCHEDULES, VisionConfig


SIBLING_BASELINES = ("leave_one_out", "first", "mean")


@dataclass
class VisionRewardConfig(VisionConfig):
    """Reward tuning as in the paper: REINFORCE with two samples, no KL, constant learning rate after warm-up.

    `per_device_train_batch_size` counts images, as in the paper and in Trainer (TRL counts completions): a step
    draws `num_generations` completions for each of them.
    """

    # Changed defaults of TrainingArguments
    learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate. Paper, Tables 4 and 5: 1e-6."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup",
        metadata={"help": "Schedule of the learning rate. Paper, Tables 4-7: constant after the warm-up."},
    )

    max_grad_norm: float = field(
        default=0.0,
        metadata={"help": "Largest norm of the gradient, to which it is clipped. 0: no clipping, as in the paper."},
    )

    # Rollout
    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of images in a rollout, over all processes (TRL counts completions): all are answered before the "
            "first is learned from. None: the images of one update step. Set this or steps_per_generation, not both."
        },
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Size of a rollout in micro-batches of a process. None: gradient_accumulation_steps, which is one rollout "
            "per update step. With a multiple of it, several update steps learn from one rollout, by the clipped ratio."
        },
    )
    num_iterations: int = field(
        default=1,
        metadata={"help": "Number of times that a rollout is learned from; from the second on, by the clipped ratio."},
    )
    per_device_generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of images that a device encodes and samples at once; fewer take less memory. None: the whole "
            "rollout, or half of it with reward_num_workers, so that one half is scored while the other is sampled."
        },
    )
    epsilon: float = field(
        default=0.2,
        metadata={
            "help": "For a rollout that is used again: how far below 1 the ratio to the sampling policy may go before "
            "it is clipped."
        },
    )
    epsilon_high: float | None = field(default=None, metadata={"help": "The same above 1. None: `epsilon`."})
    importance_sampling_level: Literal["sequence", "token"] = field(
        default="sequence",
        metadata={
            "help": "For a rollout that is used again: take the ratio of the probabilities of whole completions, as in TRL's "
            "RLOO, or of each token."
        },
    )

    # Sampling
    num_generations: int = field(
        default=2, metadata={"help": "Number of completions per image (G). Paper: 2; for captions 8."}
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Temperature of the sampled policy; the gradient is taken of the same distribution. Paper: 1."
        },
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "With ZeRO-3: gather all weights once for a rollout. False: gather them at every token, for a model that "
            "no device can hold."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Tune without dropout, so that the policy that learns is the one that sampled."},
    )

    # Reward
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function. None: 1 for each."}
    )
    completions_format: Literal["standard", "conversational"] = field(
        default="standard",
        metadata={
            "help": "Form in which rewards are given completions. standard: what the processor decodes. "
            "conversational: text as a list of one message, [{'role': 'assistant', 'content': text}], for TRL's rewards that "
            "read completion[0]['content']."
        },
    )
    reward_num_workers: int = field(
        default=0,
        metadata={
            "help": "Number of threads that compute the rewards of one half of the images while the other half is sampled; "
            "the results are the same. 0: no threads. Worth it for rewards that take long, which must be safe to call from "
            "several threads. For smaller parts than halves, set per_device_generation_batch_size."
        },
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Number of seconds to wait for one reward before training ends with an error. None: no limit. "
            "Needs reward_num_workers."
        },
    )
    scale_rewards: Literal["none", "group", "batch"] = field(
        default="none",
        metadata={
            "help": "What advantages are divided by: the standard deviation of the image's rewards (group), of all rewards "
            "of the rollout (batch), or nothing. Paper: nothing."
        },
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = field(
        default="sum_then_normalize",
        metadata={
            "help": "How several rewards are added. normalize_then_sum: each has its mean among the image's samples taken "
            "off and is divided by its standard deviation there before they are added, and the advantages are divided by that "
            "of the rollout."
        },
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={
            "help": "Do not learn from completions that reached max_completion_length without an end token; they still "
            "count in the baseline of the others."
        },
    )
    on_reward_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What happens when a reward raises, is not ready in time, or returns no finite number. raise: training "
            "ends. skip: those completions are not scored by any reward, so they neither learn nor serve as a baseline. Each "
            "is reported and counted (rewards/<name>/skipped); 100 failed calls in a row end training all the same."
        },
    )
    find_failing_row: bool = field(
        default=False,
        metadata={
            "help": "When a reward raises, call it again on parts of the batch until the completion that fails by itself is "
            "found. Not for rewards that cost something or keep state, and not with reward_timeout."
        },
    )
    beta: float = field(
        default=0.0, metadata={"help": "Weight of the KL divergence to the model before tuning. Paper: none."}
    )

    # Estimator
    baseline: Literal["leave_one_out", "first", "greedy", "mean", "none"] = field(
        default="leave_one_out",
        metadata={
            "help": "What is subtracted from a sample's reward. leave_one_out: the mean of the image's other "
            "samples. first: the same, but only sample 0 learns (the released code). greedy: the reward of the "
            "greedy completion. mean: of all samples, itself included. none: nothing."
        },
    )
    loss_reduction: Literal["sum", "mean"] = field(
        default="sum",
        metadata={
            "help": "How the log-probabilities of a completion are reduced. sum: to that of the whole sequence (Algorithm 2). "
            "mean: to the mean over all positions, i.e. divided by max_completion_length (the released snippet)."
        },
    )

    # Looking at completions
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Every logging_steps, show a few images of the step with their completions, rewards and advantages: in "
            "the terminal, under output_dir/completions/ as PNG and parquet, in TensorBoard, wandb and trackio. Each "
            "evaluation shows the first rows of its data set."
        },
    )
    num_completions_to_print: int | None = field(
        default=None,
        metadata={"help": "Number of completions in the terminal's table. None: all that are logged. 0: no table."},
    )
    log_multimodal: bool = field(
        default=True, metadata={"help": "Log completions as pictures. False: only as tables of text and numbers."}
    )
    entropy_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a bonus for the mean entropy of a token, which keeps samples from becoming all equal."
        },
    )
    mle_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the loss of MLE on the labels of the same images, added to that of the reward. It keeps the "
            "model from forgetting what the reward does not look at, and takes one more pass."
        },
    )

    @property
    def images_at_once(self) -> int:
        """Images of a rollout, over all processes: they are sampled before the first is learned from."""
        return self.generation_batch_size or self.images_in_step

    @property
    def times_learned(self) -> int:
        return self.num_iterations

    @property
    def updates_per_rollout(self) -> int:
        """Update steps that learn from one rollout."""
        return self.steps_per_generation // self.gradient_accumulation_steps * self.num_iterations  # type: ignore[operator]

    def __post_init__(self):
        watches = self.load_best_model_at_end or self.lr_scheduler_type in WATCHING_SCHEDULES
        if watches and self.metric_for_best_model is None:  # there is no evaluation loss here
            self.metric_for_best_model, self.greater_is_better = "reward", True
        super().__post_init__()
        self._derived_rollout: tuple | None = None  # where neither of its two sizes was given
        self.resolve_rollout()
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor smooths labels, but tuning learns from rewards: leave it out. It is for "
                "VisionMLEConfig."
            )
        if self.neftune_noise_alpha:
            raise ValueError(
                "With neftune_noise_alpha the policy that learns would not be the one that sampled: leave it out. It is for "
                "VisionMLEConfig."
            )
        if self.num_generations < 1:
            raise ValueError(f"num_generations must be at least 1, got {self.num_generations}.")
        if self.baseline not in (*SIBLING_BASELINES, "greedy", "none"):
            raise ValueError(f"baseline must be leave_one_out, first, greedy, mean or none, got {self.baseline!r}.")
        if self.baseline in SIBLING_BASELINES and self.num_generations < 2:
            raise ValueError(
                f"num_generations must be at least 2 with baseline={self.baseline!r}: the baseline is the mean of the "
                "other samples. Raise it, or choose baseline='greedy' or 'none'."
            )
        if self.completions_format not in ("standard", "conversational"):
            raise ValueError(
                f"completions_format must be 'standard' or 'conversational', got {self.completions_format!r}."
            )
        if self.loss_reduction not in ("sum", "mean"):
            raise ValueError(f"loss_reduction must be 'sum' or 'mean', got {self.loss_reduction!r}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; evaluation is greedy anyway.")
        if self.reward_num_workers < 0:
            raise ValueError(f"reward_num_workers must not be negative, got {self.reward_num_workers}.")
        if self.reward_timeout is not None and self.reward_timeout <= 0:
            raise ValueError(f"reward_timeout must be positive, got {self.reward_timeout}; None waits for ever.")
        if self.reward_timeout is not None and self.reward_num_workers == 0:
            raise ValueError(
                "reward_timeout needs reward_num_workers of at least 1: training cannot stop waiting for a reward that "
                "it computes itself."
            )
        if self.num_completions_to_print is not None and not self.log_completions:
            raise ValueError("num_completions_to_print needs log_completions=True.")
        if self.num_completions_to_print is not None and self.num_completions_to_print < 0:
            raise ValueError(f"num_completions_to_print must not be negative, got {self.num_completions_to_print}.")
        if self.on_reward_error not in ("raise", "skip"):
            raise ValueError(f"on_reward_error must be 'raise' or 'skip', got {self.on_reward_error!r}.")
        if self.find_failing_row and self.reward_timeout is not None:
            raise ValueError(
                "find_failing_row cannot be combined with reward_timeout: it calls a reward again, which may then hang."
            )
        if self.beta < 0:
            raise ValueError(
                f"beta must not be negative, got {self.beta}: a negative one would push the model away from the MLE model."
            )
        for name, values in {
            "scale_rewards": ("none", "group", "batch"),
            "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
            "importance_sampling_level": ("sequence", "token"),
        }.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        if self.multi_objective_aggregation == "normalize_then_sum" and self.baseline == "greedy":
            raise ValueError(
                "baseline='greedy' cannot be combined with multi_objective_aggregation='normalize_then_sum': the reward of the "
                "greedy completion has no standard deviation of its own to be divided by. Choose another baseline."
            )
        if self.scale_rewards == "group" and self.baseline in ("greedy", "none"):
            raise ValueError(
                f"baseline={self.baseline!r} cannot be combined with scale_rewards='group': where an image's samples earn the same "
                "their advantages need not be 0, but would be divided by a standard deviation of 0. Choose another baseline, or "
                "scale_rewards='batch'."
            )
        for name in ("epsilon", "entropy_coef", "mle_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.epsilon_high is not None and self.epsilon_high < 0:
            raise ValueError(f"epsilon_high must not be negative, got {self.epsilon_high}; None means epsilon.")

    def resolve_rollout(self) -> None:
        """Set `steps_per_generation` and `generation_batch_size` from each other, as TRL does it, with its sentences.

        The trainer calls this again, as the batch size or the accumulation may have been changed since.
        """
        at_once = self.per_device_train_batch_size * self.world_size
        if self._derived_rollout == (self.steps_per_generation, self.generation_batch_size):
            self.steps_per_generation = self.generation_batch_size = None
        is_derived = self.steps_per_generation is None and self.generation_batch_size is None
        both = self.generation_batch_size is not None and self.steps_per_generation is not None
        if both and self.generation_batch_size != at_once * self.steps_per_generation:  # equal in a copy of a config
            raise ValueError(
                "'generation_batch_size' and 'steps_per_generation' can not be both configured at the same time, unless they "
                f"agree: {self.steps_per_generation} steps of {at_once} images are not {self.generation_batch_size}."
            )
        if self.generation_batch_size is not None:
            if self.generation_batch_size % at_once != 0:
                raise ValueError(
                    f"generation_batch_size ({self.generation_batch_size}) must be divisible by the global batch size "
                    f"({at_once})."
                )
            self.steps_per_generation = self.generation_batch_size // at_once
        elif self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        self.generation_batch_size = at_once * self.steps_per_generation
        self._derived_rollout = (self.steps_per_generation, self.generation_batch_size) if is_derived else None
        if self.steps_per_generation < 1 or self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}): a rollout serves whole update steps. To sample fewer images "
                "at once, set per_device_generation_batch_size."
            )
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {self.num_iterations}.")
        if self.per_device_generation_batch_size is not None and self.per_device_generation_batch_size < 1:
            raise ValueError(
                f"per_device_generation_batch_size must be at least 1, got {self.per_device_generation_batch_size}."
            )
