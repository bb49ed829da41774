"""What both steps share: data, loss scaling, optimiser groups, checkpoints. The parts of Trainer that we own."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    VisionEncoderDecoderModel,
    set_seed,
)
from transformers.utils import find_adapter_config_file

from vision_rl.models.encoded import EncodedDataset
from vision_rl.models.lengths import completion_length, num_positions
from vision_rl.models.preparation import (
    align_special_ids,
    drop_generation_options,
    forbid_uncounted_id,
    freeze_unused_parameters,
    prepare_for_fsdp,
)
from vision_rl.models.shared_images import share_images
from vision_rl.models.unwrapping import base_model, decoder_of, is_vision_encoder_decoder
from vision_rl.models.uvim import UViMDecoder
from vision_rl.processing import as_vision_processor
from vision_rl.trainer import checks
from vision_rl.trainer.collator import VisionCollator
from vision_rl.trainer.data_order import EpochSampler, RowDataset
from vision_rl.trainer.evaluation import CompletingTrainer
from vision_rl.trainer.optim import (
    BigVisionAdafactor,
    attention_view_shapes,
    kernel_names,
    parameter_groups,
    parse_optim_args,
)
from vision_rl.trainer.stream import RunningNumbers, StreamHead, StreamRows, is_stream
from vision_rl.trainer.vision_config import BIG_VISION_ADAFACTOR, VisionConfig


logger = logging.getLogger(__name__)

STAGE1_FOLDER = "stage1"


class VisionTrainer(CompletingTrainer):
    """Base of `VisionMLETrainer` and `VisionRewardTrainer`; use one of these.

    Four things are done otherwise than in transformers' Trainer, each because it goes wrong for these models there:
    the loss is normalised over the whole step (accumulation and ranks included), a resume or load-best restores the
    encoder too, the data order is a function of (seed, epoch), and evaluation decodes greedily and computes
    metrics over the whole set.
    """

    learns_from_labels: bool
    _tag_names: list[str]
    loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's items itself

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VisionConfig,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        completion_decoder: nn.Module | None = None,
    ):
        set_seed(args.seed)  # before adapters are initialised
        if args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported: start with `accelerate launch`, one process a GPU.")
        if isinstance(model, str):
            if processing_class is None:
                processing_class = load_processor(model)
            options: Any = {"dtype": torch.float32, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
            model = load_policy(model, options)
        if processing_class is None:
            raise ValueError("A processing_class is needed: it makes pixel_values and labels and decodes completions.")

        if peft_config is not None and (
            isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False)
        ):
            raise ValueError(
                "The model has adapters already: leave out peft_config to train them, or give "
                "model.merge_and_unload() to put new ones on top."
            )
        self._prepare_model(base_model(model), args, processing_class)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        if train_dataset is not None:
            checks.check_trainable(model, args)

        if completion_decoder is not None and not isinstance(completion_decoder, nn.Module):
            raise TypeError(
                f"completion_decoder is a {type(completion_decoder).__name__}; it must be an nn.Module, which is "
                "moved to the device and saved. A function belongs into the processor's batch_decode."
            )
        self.completion_decoder = completion_decoder
        if isinstance(completion_decoder, UViMDecoder):
            checks.check_code_writer(completion_decoder.stage1.config, self.processor, self.max_completion_length)
            checks.check_stage1(completion_decoder.stage1.config, completion_decoder.processor)
        if is_stream(train_dataset):
            checks.check_stream(args)
        looked_at = StreamHead.of(train_dataset) if is_stream(train_dataset) else train_dataset
        datasets = checks.named_datasets(looked_at, eval_dataset)
        for name, dataset in datasets.items():
            checks.check_dataset(name, dataset)
        self.target_columns = self._resolve_target_columns(args, datasets)
        collator = self._make_collator(args, datasets)
        self._check_data(args, datasets, collator, base_model(model))
        for name, dataset in datasets.items():
            if compute_metrics is not None and name != "train_dataset":
                checks.check_references(name, self.processor, self.target_columns, dataset)
        checks.check_best_metric(args, eval_dataset)
        checks.check_metric(compute_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled:
            prepare_for_fsdp(self.model, self.accelerator.state.fsdp_plugin.fsdp_version)
        self.bare(self.model).add_model_tags(self._tag_names)
        self.model_accepts_loss_kwargs = False  # the models here take **kwargs and ignore num_items_in_batch
        self.data_seed = args.seed if args.data_seed is None else args.data_seed
        self.num_images_in_step: int | None = None
        self.stream: StreamRows | None = None  # of a train_dataset that is one, once training has begun
        if completion_decoder is not None:
            completion_decoder.requires_grad_(False)
            self.completion_decoder = self.accelerator.prepare_model(completion_decoder, evaluation_mode=True).eval()

    def _prepare_model(self, policy: Any, args: VisionConfig, processing_class) -> None:
        """Check the model against its processor, and free it of what hinders training."""
        align_special_ids(policy, processing_class)
        drop_generation_options(policy)
        self.processor = as_vision_processor(processing_class, policy.generation_config.decoder_start_token_id)
        length = args.max_completion_length or self.processor.completion_length
        if is_vision_encoder_decoder(policy):
            forbid_uncounted_id(policy)
        checks.check_model(policy, self.processor, length)
        self.max_completion_length = completion_length(policy, length)
        policy.generation_config.max_new_tokens = self.max_completion_length  # saved: `generate` would stop at 20
        freeze_unused_parameters(policy)
        if is_vision_encoder_decoder(policy):
            share_images(policy)
        else:
            logger.warning(
                "%s is sampled through transformers' generate: slower, and its draws depend on the batch.",
                type(policy).__name__,
            )

    # --- data -------------------------------------------------------------------------------------------------------

    def _make_collator(self, args: VisionConfig, datasets: dict) -> VisionCollator:
        return VisionCollator(self.processor, args.image_column, self.target_columns, self.learns_from_labels)

    def _resolve_target_columns(self, args: VisionConfig, datasets: dict) -> dict[str, str]:
        """The column for each target keyword; tuning leaves out those that no data set has."""
        named: dict[str, str] = dict(args.target_columns or {})  # type: ignore[arg-type]
        unknown = set(named) - set(self.processor.target_columns)
        if unknown:
            raise ValueError(
                f"target_columns names {sorted(unknown)}, but {type(self.processor).__name__} takes "
                f"{list(self.processor.target_columns)}."
            )
        columns = {keyword: named.get(keyword, keyword) for keyword in self.processor.target_columns}
        if self.learns_from_labels:
            return columns
        present = {column for dataset in datasets.values() for column in checks.column_names(dataset)}
        return {keyword: column for keyword, column in columns.items() if column in present or keyword in named}

    def _check_data(self, args: VisionConfig, datasets: dict, collator: VisionCollator, policy) -> None:
        vocab_size = decoder_of(policy).config.vocab_size if is_vision_encoder_decoder(policy) else None
        for name, dataset in datasets.items():
            columns = checks.column_names(dataset)
            needed: Any = self.target_columns if self.learns_from_labels else args.target_columns or {}
            checks.check_columns(name, columns, [args.image_column, *needed.values()])
            rows = dataset.dataset if isinstance(dataset, EncodedDataset) else dataset
            present = {keyword: column for keyword, column in self.target_columns.items() if column in columns}
            positions = (
                num_positions(policy) if self.learns_from_labels and is_vision_encoder_decoder(policy) else None
            )
            checks.check_rows(name, rows, self.processor, {"image": args.image_column, **present}, positions)
            if isinstance(self.completion_decoder, UViMDecoder) and rows is not dataset:
                raise ValueError(
                    f"{name} is an EncodedDataset, but stage I needs the images as well: give the trainer the data set itself."
                )
            checks.check_first_row(collator, RowDataset(dataset), self.processor, vocab_size)
            if self.completion_decoder is None:
                checks.check_first_labels(name, collator, dataset)
        train_dataset, step = datasets.get("train_dataset"), self._step_size(args)
        if train_dataset is not None and len(train_dataset) < step and not isinstance(train_dataset, StreamHead):
            raise ValueError(
                f"One step takes {step} images (per_device_train_batch_size x accumulation x ranks), train_dataset "
                f"has only {len(train_dataset)}: lower the batch size."
            )

    @staticmethod
    def _step_size(args: VisionConfig) -> int:
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("Training needs a train_dataset.")
        step_size = self._step_size(self.args)
        rows: Dataset
        sampler: Sampler
        if is_stream(self.train_dataset):
            ranks = self.accelerator.num_processes, self.accelerator.process_index
            rows = self.stream = StreamRows(
                self.train_dataset, self.data_seed, self._train_batch_size, step_size, 1, *ranks
            )
            sampler = RunningNumbers(self.args.max_steps, step_size)
        else:
            rows = RowDataset(self.train_dataset, seed=self.data_seed)
            sampler = EpochSampler(rows, self.data_seed, self.args.shuffle_dataset, step_size)
        return self._get_dataloader(
            rows, "Training", self._train_batch_size, sampler_fn=lambda _: sampler, is_training=True
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one update step, and how many items the loss of the whole step is averaged over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = (
            torch.tensor([[self._count_items(b), len(b["row_index"])] for b in batches], device=device)
            .reshape(-1, 2)
            .sum(0)
        )
        items, num_images = self.accelerator.gather(counts[None]).sum(0).tolist()
        self.num_images_in_step = int(num_images)
        return batches, items

    def _count_items(self, batch: dict) -> float:
        """What the loss is a mean of: tokens in MLE, images in tuning."""
        raise NotImplementedError

    def mean_over_step(self, values: torch.Tensor, num_items: float | None = None) -> torch.Tensor:
        """`values.sum()` as this micro-batch's share of the mean over the whole update step.

        Ranks are averaged by DDP and DeepSpeed, hence the factor. `num_items` defaults to the step's images: an
        auxiliary loss with one value an image is added as `self.mean_over_step(values)`. Outside of training the step
        is the batch.
        """
        num_items = num_items or self.num_images_in_step or len(values) * self.accelerator.num_processes
        return values.sum() * self.accelerator.num_processes / num_items

    def model_inputs(self, batch: dict) -> dict[str, Any]:
        """The images of a batch as the model takes them; a batch may carry `encoder_outputs (B, N, d)` instead."""
        if "encoder_outputs" in batch:
            return {"encoder_outputs": (batch["encoder_outputs"].to(self.bare(self.model).dtype),)}
        return {"pixel_values": batch["pixel_values"]}

    # --- optimiser --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW or any of Trainer's, or the paper's Adafactor; the encoder with its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        paper = self.args.optim == BIG_VISION_ADAFACTOR
        groups = parameter_groups(
            model,
            self.args.learning_rate,
            self.args.encoder_learning_rate,
            self.args.weight_decay,
            decay_names=kernel_names(model) if paper else set(self.get_decay_parameter_names(model)),
        )
        if paper:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    f"optim={BIG_VISION_ADAFACTOR!r} needs whole tensors to factor; DeepSpeed and FSDP hand out flat "
                    "pieces of them. Use optim='adamw_torch' there."
                )
            options = parse_optim_args(self.args.optim_args)
            if options.pop("reference_layout", False):
                options["view_shapes"] = attention_view_shapes(model)
            self.optimizer = BigVisionAdafactor(groups, lr=self.args.learning_rate, **options)
        else:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            if {"params", "model", "optimizer_dict"} & set(options):
                raise ValueError(
                    f"optim={self.args.optim!r} builds its own parameter groups: pass it in `optimizers`."
                )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As Trainer's; without an argument `args.resume_from_checkpoint` counts, which Trainer leaves to scripts."""
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if str(resume_from_checkpoint).lower() in ("true", "false"):  # from a command line
            resume_from_checkpoint = str(resume_from_checkpoint).lower() == "true"
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """All weights, the encoder's too: Trainer's own way misses those that are saved under their older names."""
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel) and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            restored = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype).state_dict()
            names = set(model.state_dict())
            restored |= _saved_tensors(
                resume_from_checkpoint, names - set(restored)
            )  # parts that a subclass has added
            model.load_state_dict({name: restored[name] for name in names})  # not a pooler added on loading
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
            return
        super()._load_best_model()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.stream is not None:
            num_asked = self.state.global_step * self.args.gradient_accumulation_steps * self._train_batch_size
            torch.save(self.stream.position(num_asked), self._stream_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.stream is not None and checkpoint is not None and os.path.isfile(self._stream_file(checkpoint)):
            self.stream.resume(torch.load(self._stream_file(checkpoint), weights_only=True))

    def _stream_file(self, checkpoint: str) -> str:
        """Each rank has a share of the stream, and a place in it."""
        return os.path.join(checkpoint, f"stream_{self.args.process_index}.pt")

    def _save(self, output_dir=None, state_dict=None):
        """One folder with all that the tuned model needs: model, processor and, if there is one, `stage1/`."""
        super()._save(output_dir, state_dict)
        parts = [] if self.completion_decoder is None else self.bare(self.completion_decoder).modules()
        stage1 = next((part for part in parts if isinstance(part, PreTrainedModel)), None)
        if stage1 is not None and self.args.should_save:
            output_dir = output_dir if output_dir is not None else self.args.output_dir
            stage1.save_pretrained(os.path.join(output_dir, STAGE1_FOLDER))

    def floating_point_ops(self, inputs) -> int:
        return 0  # Trainer's estimate counts the tokens of a language model's input


def load_policy(name_or_path: str, options: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The model of a name or path; of saved adapters, the model that they belong to with the adapters, to train on."""
    where = {name: options[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in options}
    if find_adapter_config_file(name_or_path, **where) is None:
        return VisionEncoderDecoderModel.from_pretrained(name_or_path, **options)
    base = PeftConfig.from_pretrained(name_or_path, **where).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{name_or_path} holds adapters and does not say of which model. Load it yourself: "
            f"PeftModel.from_pretrained(base_model, {name_or_path!r}, is_trainable=True)."
        )
    revision = where.pop("revision", None)  # of the adapters; the base has a history of its own
    options = {name: value for name, value in options.items() if name != "revision"}
    model = VisionEncoderDecoderModel.from_pretrained(base, **options)
    return PeftModel.from_pretrained(model, name_or_path, is_trainable=True, revision=revision, **where)


def load_processor(name_or_path: str) -> Any:
    """The processor of a name or path. `AutoProcessor` knows one that is not transformers' once its module is imported."""
    processor = AutoProcessor.from_pretrained(name_or_path)
    saved = ProcessorMixin.get_processor_dict(name_or_path)[0].get("processor_class")
    if isinstance(processor, ProcessorMixin) or saved is None:
        return processor
    raise ValueError(
        f"{name_or_path} has a {saved}, whose module nothing has imported: import it before "
        "(vision_rl.tasks.detection, ...), or give the trainer a processing_class."
    )


def name_of_model(model: str | PreTrainedModel | PeftModel) -> str:
    """The last part of the model's name or path, from which the default output folder is named."""
    name = model if isinstance(model, str) else base_model(model).config._name_or_path or type(model).__name__
    return name.rstrip("/").split("/")[-1]


def _saved_tensors(folder: str, names: set[str]) -> dict[str, torch.Tensor]:
    """Those of the tensors `names` that the checkpoint in `folder` holds under these names."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")) if names else []:
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names & set(file.keys())}
    return tensors
