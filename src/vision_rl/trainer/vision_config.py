"""The options that both steps share."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments

from vision_rl.trainer.optim import BIG_VISION_ADAFACTOR, read_optim_args
from vision_rl.trainer.other_names import OF_CONFIGS, refuse_other_names
from vision_rl.trainer.processes import check_processes, choose_deepspeeds_device, join_deepspeed


WATCHING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # their learning rate depends on `metric_for_best_model`


@dataclass
class VisionConfig(TrainingArguments):
    """`TrainingArguments` with what a model that writes its answer as tokens needs. Batch sizes count images.

    An epoch consists of whole optimisation steps: the images of an epoch that do not fill one wait for the next epoch, so
    that a step has the same images for every split into micro-batches and ranks.
    """

    # Changed defaults of TrainingArguments
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: every column of the data set reaches the rewards."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Number of update steps between two log lines."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off, unlike in Trainer: a NaN loss must be seen, not averaged away."}
    )
    optim: str = field(
        default="adamw_torch_fused",
        metadata={
            "help": "One of Trainer's optimisers, or 'big_vision_adafactor', the paper's, whose options go into `optim_args`, "
            "e.g. 'beta2_cap=0.95'. Its weight_decay is the paper's too: it is multiplied by the schedule, but not by "
            "learning_rate."
        },
    )

    # Model
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments for from_pretrained when `model` is a name or a path."}
    )
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder. None: `learning_rate`, as for the decoder."}
    )
    max_completion_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens that are generated. None: max_new_tokens of the generation config, else 128."},
    )

    # Data
    image_column: str = field(default="image", metadata={"help": "Column with the image."})
    target_columns: dict | str | None = field(
        default=None,
        metadata={
            "help": "The column for each target keyword of the processor, e.g. {'text': 'transcription'}. "
            "None: the columns are named as the keywords."
        },
    )
    shuffle_dataset: bool = field(
        default=True, metadata={"help": "Shuffle the training rows again in each epoch. A stream keeps its own order."}
    )

    # Faults
    on_bad_row: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What happens when a row's image cannot be read in the middle of a run. raise: training ends with "
            "an error that names row and file. skip: the next row that can be read takes its place, and the bad row is "
            "reported and counted (`skipped_rows`)."
        },
    )
    on_nonfinite: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What happens when the loss, the gradient or a reward of a step is NaN or infinite, before the optimizer "
            "moves. raise: training ends. skip: the step is left out and counted (`skipped_steps`). Either way the batch is "
            "written to output_dir/faults."
        },
    )
    max_skipped_steps: int = field(
        default=10,
        metadata={"help": "With on_nonfinite='skip': training ends after this many steps in a row were left out."},
    )
    save_retry: bool = field(
        default=False,
        metadata={
            "help": "Go on when a checkpoint cannot be written (a full disk); training ends only if the next one fails too. "
            "False: training ends at once. Either way, earlier checkpoints stay."
        },
    )

    # Options of TrainingArguments that nothing here reads: their defaults, and what does it instead.
    _WITHOUT_EFFECT: ClassVar[dict[str, tuple[Any, str]]] = {
        "train_sampling_strategy": ("random", "`shuffle_dataset` sets the order of the rows"),
        "length_column_name": ("length", "`shuffle_dataset` sets the order of the rows"),
        "include_num_input_tokens_seen": ("no", "`num_tokens` counts the completions' tokens"),
        "include_for_metrics": ([], "compute_metrics is given predictions and references"),
        "batch_eval_metrics": (False, "compute_metrics is given the whole evaluation set at once"),
        "prediction_loss_only": (False, "leave out compute_metrics instead"),
        "eval_do_concat_batches": (True, "completions are objects, which are put into a list"),
        "eval_use_gather_object": (False, "completions are always gathered as objects"),
        "eval_accumulation_steps": (None, "completions are on the CPU as soon as they are decoded"),
        "label_names": (None, "the processor makes the labels from the `target_columns`"),
        "average_tokens_across_devices": (True, "the loss is always a mean over the tokens of all processes"),
        "use_liger_kernel": (False, "the head and the loss are already computed in one pass"),
        "liger_kernel_config": (None, "the head and the loss are already computed in one pass"),
        "optim_target_modules": (None, "it is for optimisers that build their own parameter groups"),
    }
    _HARMFUL: ClassVar[dict[str, str]] = {
        "split_batches": "per_device_train_batch_size counts the images of each process",
        "dispatch_batches": "every process reads its own rows",
    }

    @property
    def images_in_step(self) -> int:
        """Images of an update step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def images_at_once(self) -> int:
        """Images that are learned from together, over all processes: an epoch consists of whole such blocks."""
        return self.images_in_step

    @property
    def times_learned(self) -> int:
        """How often each block of images comes, one time after the other."""
        return 1

    # TrainingArguments parses these from JSON on the command line.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "target_columns"]

    def __new__(cls, *args, **kwargs):
        refuse_other_names(cls, kwargs, VisionConfig, OF_CONFIGS)
        return super().__new__(cls)

    def __post_init__(self):
        if self.bf16_full_eval or self.fp16_full_eval:
            raise ValueError("bf16_full_eval and fp16_full_eval are not supported: evaluation follows bf16 and fp16.")
        choose_deepspeeds_device(self)
        paper_optimizer = self.optim == BIG_VISION_ADAFACTOR
        if paper_optimizer:
            self.optim = "adafactor"  # a name that TrainingArguments accepts; put back below
        super().__post_init__()
        if paper_optimizer:
            self.optim = BIG_VISION_ADAFACTOR
            read_optim_args(self.optim_args)
        if self.lr_scheduler_type in WATCHING_SCHEDULES and self.greater_is_better:
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}  # type: ignore[dict-item]
        check_processes(self)
        join_deepspeed(self)
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = (
                False  # else torch warns of each loader that there is nothing to pin memory for
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: rewards and metrics read the data set's columns.")
        if self.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last must be False: training takes whole steps anyway, and an evaluation would lose rows."
            )
        self._check_numbers()
        for name, (default, instead) in self._WITHOUT_EFFECT.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect here: {instead}. Leave it out.")
        for name, why in self._HARMFUL.items():
            if getattr(self.accelerator_config, name, None):
                raise ValueError(f"accelerator_config has {name}: {why}. Leave it out.")
        if not self.dataloader_in_order:
            raise ValueError(
                "dataloader_in_order must be True: otherwise the images of a step would depend on how long each takes."
            )
        if self.parallelism_config is not None:
            raise ValueError("parallelism_config is not supported: models are trained under DDP, FSDP2 and ZeRO.")
        if (
            self.ddp_find_unused_parameters is None
        ):  # what gets no gradient has been frozen; DDP need not look, nor warn
            self.ddp_find_unused_parameters = False
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size changes the batch in the middle of training; set per_device_train_batch_size."
            )
        if self.target_columns is not None and not isinstance(self.target_columns, dict):
            raise ValueError(
                f"target_columns is {self.target_columns!r}; it must be a dict of the column for each target keyword of the "
                "processor, such as {'text': 'transcription'}."
            )
        if self.encoder_learning_rate is not None and self.encoder_learning_rate < 0:
            raise ValueError(f"encoder_learning_rate must not be negative, got {self.encoder_learning_rate}.")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(f"max_completion_length must be at least 1, got {self.max_completion_length}.")
        for name in ("on_bad_row", "on_nonfinite"):
            if getattr(self, name) not in ("raise", "skip"):
                raise ValueError(f"{name} must be 'raise' or 'skip', got {getattr(self, name)!r}.")
        if self.max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps must be at least 1, got {self.max_skipped_steps}.")

    def _check_numbers(self) -> None:
        """No option is NaN, which passes for any range, and none of ours is infinite; `max_grad_norm=inf` only measures.

        What is counted to a step is at least one.
        """
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        of_trainer = {field.name for field in fields(TrainingArguments)}
        for option in fields(self):
            given = getattr(self, option.name)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, float) and (
                    math.isnan(value) or (math.isinf(value) and option.name not in of_trainer)
                ):
                    raise ValueError(f"{option.name} is {given}, but it must be a finite number.")


def on_one_device(config: VisionConfig) -> Any:
    """Return the config for this process alone: without a launch transformers would spread the model over all GPUs."""
    config._n_gpu = min(config.n_gpu, 1)
    return config
