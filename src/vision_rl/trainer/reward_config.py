"""Options of step 2, reward tuning. The defaults are the paper's, the names TRL's wherever TRL has one."""

from dataclasses import dataclass, field
from typing import Literal

from vision_rl.trainer.vision_config import VisionConfig


SIBLING_BASELINES = ("leave_one_out", "first", "mean")


@dataclass
class VisionRewardConfig(VisionConfig):
    """Reward tuning as in the paper: REINFORCE with two samples, no KL, constant learning rate after warm-up.

    `per_device_train_batch_size` counts images, as in the paper and in Trainer (TRL counts completions): a step
    draws `num_generations` completions for each of them.
    """

    # Changed defaults of TrainingArguments
    learning_rate: float = field(default=1e-6, metadata={"help": "Paper, Tables 4 and 5: 1e-6."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Paper, Tables 4-7: constant after the warm-up."}
    )

    max_grad_norm: float = field(default=0.0, metadata={"help": "Paper: gradients are not clipped. 0: no clipping."})

    # Sampling
    num_generations: int = field(default=2, metadata={"help": "Completions an image (G). Paper: 2; captions 8."})
    temperature: float = field(
        default=1.0,
        metadata={"help": "Of the sampled policy; the gradient is taken of the same distribution. Paper: 1."},
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Tune without dropout, so that the policy that learns is the one that sampled."},
    )

    # Reward
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function; None: all 1."}
    )
    completions_format: Literal["standard", "conversational"] = field(
        default="standard",
        metadata={
            "help": "What rewards are given. standard: what the processor decodes. conversational: text as a list of one "
            "message, [{'role': 'assistant', 'content': text}], for TRL's rewards that read completion[0]['content']."
        },
    )
    reward_num_workers: int = field(
        default=0,
        metadata={
            "help": "Threads that compute the rewards of a micro-batch while the next one is sampled; the results are the "
            "same. 0: no threads. Worth it under gradient accumulation, for rewards that take long; they must then be "
            "safe to call from several threads. Memory for one more micro-batch's encoder activations is needed."
        },
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Training ends with an error when it has waited for one reward for so many seconds. None: it waits. "
            "Needs reward_num_workers."
        },
    )
    beta: float = field(
        default=0.0, metadata={"help": "Weight of the KL divergence to the model before tuning. Paper: none."}
    )

    # Estimator
    baseline: Literal["leave_one_out", "first", "greedy", "mean", "none"] = field(
        default="leave_one_out",
        metadata={
            "help": "What is subtracted from a sample's reward. leave_one_out: the mean of its siblings. first: the "
            "same, but only sample 0 learns (the released code). greedy: the reward of the greedy completion. mean: "
            "of all samples, itself included. none: nothing."
        },
    )
    loss_reduction: Literal["sum", "mean"] = field(
        default="sum",
        metadata={
            "help": "sum: the log-probability of the whole sequence (Algorithm 2). mean: over all positions, i.e. "
            "divided by max_completion_length (the released snippet)."
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
        default=None, metadata={"help": "Completions in the terminal's table. None: all that are logged; 0: no table."}
    )
    log_multimodal: bool = field(
        default=True, metadata={"help": "Log completions as pictures. False: only as tables of text and numbers."}
    )

    def __post_init__(self):
        watches = self.load_best_model_at_end or self.lr_scheduler_type == "reduce_lr_on_plateau"
        if watches and self.metric_for_best_model is None:  # there is no evaluation loss here
            self.metric_for_best_model, self.greater_is_better = "reward", True
        super().__post_init__()
        if self.lr_scheduler_type == "reduce_lr_on_plateau" and self.greater_is_better:
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}  # type: ignore[dict-item]
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
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}: it would push away from the MLE model.")
