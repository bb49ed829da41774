"""What both steps share: data, loss scaling, optimiser groups, checkpoints. The parts of Trainer that we own."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from vision_rl.columns import has_no_values
from vision_rl.manifest import TRAINING_STATE, loading, naming
from vision_rl.models.completion_decoder import CompletionDecoder, check_completion_decoder
from vision_rl.models.completions import SampledCompletions
from vision_rl.models.encoded import EncodedDataset
from vision_rl.models.lengths import num_positions
from vision_rl.models.preparation import (
    drop_text_arguments,
    freeze_unused_parameters,
    prepare_for_fsdp,
)
from vision_rl.models.sampling import sample
from vision_rl.models.served import image_inputs
from vision_rl.models.unwrapping import base_model, decoder_of, is_served
from vision_rl.processing import DenseProcessor, VisionProcessor
from vision_rl.trainer import checkpoints, checks, evaluation, hub, resuming
from vision_rl.trainer.collator import CODES, ENCODER_OUTPUTS, VisionCollator, codes_given, target_columns_of
from vision_rl.trainer.data_order import EpochSampler, RowDataset, WithoutColumns
from vision_rl.trainer.encoding import images_of
from vision_rl.trainer.finite import FiniteCheck
from vision_rl.trainer.loading import load_policy, load_processor, prepared_policy, restore_weights, with_adapters
from vision_rl.trainer.metric_functions import as_metric
from vision_rl.trainer.model_card import write_card
from vision_rl.trainer.model_checks import check_encoder
from vision_rl.trainer.optimizer import check_optimizer, make_optimizer
from vision_rl.trainer.other_names import OF_TRAINERS, refuse_other_names
from vision_rl.trainer.progress import ProgressLine
from vision_rl.trainer.ranks import check_same_data, wait_for_gloo_at_exit
from vision_rl.trainer.run_record import RunRecord
from vision_rl.trainer.shown_answers import ShownAnswers
from vision_rl.trainer.stream import RunningNumbers, StreamHead, StreamRows, is_stream
from vision_rl.trainer.vision_config import VisionConfig


logger = logging.getLogger(__name__)

STAGE1_FOLDER = "stage1"


class VisionTrainer(Trainer):
    """Base of `VisionMLETrainer`, `VisionRewardTrainer` and `Stage1Trainer`; use one of these.

    Four things are done otherwise than in transformers' Trainer, each because it goes wrong for these models there:
    the loss is normalised over the whole step (accumulation and ranks included), a resume or load-best restores the
    encoder too, the data order is a function of (seed, epoch), and evaluation decodes greedily and computes
    metrics over the whole set.
    """

    args: VisionConfig
    model: Any  # Trainer's own annotations allow None, or another form, where there is none here
    eval_dataset: Any
    compute_metrics: Any
    deepspeed: Any
    push_in_progress: Any = None  # set where a repository is made: on the main process alone
    processor: VisionProcessor
    target_columns: dict[str, str]
    max_completion_length: int
    learns_from_labels: bool
    num_images_in_step: int | None = None  # of all micro-batches and ranks; None outside of training
    stream: StreamRows | None = None  # of a train_dataset that is one, once training has begun
    loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's items itself
    _tag_names: list[str]
    learned_by: str  # for the model card
    rewards_learned: dict[str, float] = {}  # by their names, with their weights
    dataset_name: str | None = None  # for the model card; the last one that it was given
    _predicting = False
    holds_all_weights = False  # for now, although they are sharded (`whole_weights`)
    _save_failed = False

    def __new__(cls, *args, **kwargs):
        refuse_other_names(cls, kwargs, VisionTrainer, OF_TRAINERS)
        return super().__new__(cls)

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VisionConfig,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        completion_decoder: nn.Module | None = None,
    ):
        set_seed(args.seed)  # before adapters are initialised
        if args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported: start with `accelerate launch`, one process per GPU.")
        self.data_seed = args.seed if args.data_seed is None else args.data_seed
        given = model
        # Load
        if isinstance(model, str):
            options: Any = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
            if "torch_dtype" in options:  # its name before transformers 5, which lets `dtype` win
                options.setdefault("dtype", options.pop("torch_dtype"))
            with loading(model, without=TRAINING_STATE):
                if processing_class is None:
                    processing_class = load_processor(model, options)
                model = load_policy(model, options)
        elif args.model_init_kwargs:
            raise ValueError(
                "model_init_kwargs are for a model that is given by its name: pass the name or path, or leave them out and load "
                "the model with them."
            )
        if processing_class is None:
            raise ValueError("A processing_class is needed: it makes pixel_values and labels and decodes completions.")
        self._prepare_model(base_model(model), args, processing_class)
        started_from = given if isinstance(given, str) else base_model(given).config._name_or_path
        compute_metrics = as_metric(compute_metrics, self.processor)
        model = with_adapters(model, peft_config)
        if isinstance(model, PeftModel):
            freeze_unused_parameters(
                base_model(model)
            )  # the adapters of what the decoder does not read get no gradient
            drop_text_arguments(base_model(model))
        self.completion_decoder = completion_decoder
        # Check
        if train_dataset is not None:
            checks.check_trainable(model, args)
        check_completion_decoder(completion_decoder, self.processor, self.max_completion_length)
        if is_stream(train_dataset):
            checks.check_stream(args)
        looked_at = StreamHead.of(train_dataset) if is_stream(train_dataset) else train_dataset
        datasets = checks.named_datasets(looked_at, eval_dataset)
        for name, dataset in datasets.items():
            checks.check_dataset(name, dataset)
        self.target_columns = target_columns_of(
            self.processor, args.target_columns, map(checks.column_names, datasets.values()), self.learns_from_labels
        )
        collator = self._make_collator(args, datasets)
        self._check_data(args, datasets, collator, base_model(model))
        for name, dataset in datasets.items():
            if compute_metrics is not None and name != "train_dataset":
                checks.check_references(name, self.processor, self.target_columns, dataset)
        computed = compute_metrics is not None  # which may have any name but that of the loss
        checks.check_best_metric(
            args, eval_dataset, lambda name: (computed and name != "loss") or self._measures(name)
        )
        # Hand over to Trainer
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
        if self.optimizer is not None and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            check_optimizer(self.optimizer, self.model, args)
        if self.is_fsdp_enabled:
            prepare_for_fsdp(self.model, self.accelerator.state.fsdp_plugin.fsdp_version)
        check_same_data(self.accelerator, datasets)
        wait_for_gloo_at_exit()
        self.shown_answers = ShownAnswers(args.image_column)
        self.finite_check = FiniteCheck(self)
        self._boundary = checkpoints.StepBoundary()
        self.callback_handler.callbacks.insert(0, self._boundary)  # a step is whole, whatever other callbacks raise
        rows = {name: len(each) for name, each in datasets.items() if not isinstance(each, StreamHead)}
        self._progress = ProgressLine.take_place(self)
        self.add_callback(RunRecord({"trainer": type(self).__name__, "model": started_from, "rows": rows}))
        self._bad_rows: set[str] = set()
        self.model_accepts_loss_kwargs = False  # the models here take **kwargs and ignore num_items_in_batch
        self.unwrap(self.model).add_model_tags(self._tag_names)
        if completion_decoder is not None:
            completion_decoder.requires_grad_(False)
            self.completion_decoder = self.accelerator.prepare_model(completion_decoder, evaluation_mode=True).eval()

    def _prepare_model(self, policy: Any, args: VisionConfig, processing_class) -> None:
        """Check the model against its processor, and free it of what hinders training."""
        self.processor, self.max_completion_length = prepared_policy(
            policy, args.max_completion_length, processing_class
        )

    def unwrap(self, model: nn.Module) -> Any:
        """The transformers model inside whatever DDP, DeepSpeed, `torch.compile` and PEFT have put around it."""
        return base_model(self.accelerator.unwrap_model(model, keep_torch_compile=False))

    def shards_weights(self) -> bool:
        """Whether each rank keeps only a part of them: FSDP and ZeRO-3."""
        zero = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return self.is_fsdp_enabled or (zero is not None and zero.zero_stage == 3)

    def gathers_weights(self) -> bool:
        """Whether a forward now has to gather them, so that it is one of all ranks."""
        return self.shards_weights() and not self.holds_all_weights

    # --- data -------------------------------------------------------------------------------------------------------

    def _make_collator(self, args: VisionConfig, datasets: dict) -> VisionCollator:
        """Make the collator. Labels of codes come from a column `codes`, else from dense targets by stage I."""
        process, learned = None, None
        if self.learns_from_labels and isinstance(self.processor, DenseProcessor):
            if codes_given(map(checks.column_names, datasets.values())):
                learned = {CODES: CODES}
            elif isinstance(self.completion_decoder, CompletionDecoder):
                process = self.completion_decoder.processor.dense
        columns = self.target_columns
        return VisionCollator(self.processor, args.image_column, columns, self.learns_from_labels, process, learned)

    def _check_data(self, args: VisionConfig, datasets: dict, collator: VisionCollator, policy) -> None:
        vocab_size = decoder_of(policy).config.vocab_size if is_served(policy) else None
        for name, dataset in datasets.items():
            columns = checks.column_names(dataset)
            needed: Any = self.target_columns if self.learns_from_labels else args.target_columns or {}
            checks.check_columns(name, columns, [args.image_column, *self.processor.input_columns, *needed.values()])
            rows = dataset.dataset if isinstance(dataset, EncodedDataset) else dataset
            reads = self.learns_from_labels and is_served(policy)
            positions = num_positions(policy) if reads else None
            if rows is dataset and args.on_bad_row == "raise":
                checks.check_images(name, rows, args.image_column)
            checks.check_rows(name, rows, self.processor, self._checked_columns(args, columns), positions)
            if isinstance(self.completion_decoder, CompletionDecoder) and rows is not dataset:
                raise ValueError(
                    f"{name} is an EncodedDataset, but stage I needs the images as well: give the trainer the data set itself."
                )
            readable = RowDataset(dataset, check=collator.check_image if args.on_bad_row == "skip" else None)
            batch = checks.check_first_row(collator, readable, self.processor, vocab_size)
            check_encoder(policy, batch)
            if self.completion_decoder is None:
                checks.check_first_labels(name, collator, readable)
            if self.learns_from_labels and name == "train_dataset" and ENCODER_OUTPUTS in columns:
                checks.check_one_view(name, collator, readable)
            self._check_rewards(name, columns)
        train_dataset, rows_needed = datasets.get("train_dataset"), args.images_at_once
        if isinstance(train_dataset, StreamHead):
            return  # how many rows follow, nobody knows
        if train_dataset is not None and len(train_dataset) < rows_needed:
            raise ValueError(
                f"One step takes {rows_needed} images (per_device_train_batch_size x accumulation x ranks), but train_dataset "
                f"has only {len(train_dataset)}: lower the batch size."
            )

    def _checked_columns(self, args: VisionConfig, columns: list[str]) -> dict[str, str]:
        """Those columns, by the processor's keywords, whose rows it looks at: the image and what there is of the targets."""
        present = {keyword: column for keyword, column in self.target_columns.items() if column in columns}
        return {"image": args.image_column, **present}

    def _check_rewards(self, name: str, columns: list[str]) -> None:
        """Check that the columns have what the rewards ask for; MLE has no rewards."""

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("Training needs a train_dataset.")
        args, seed, batch_size = self.args, self.data_seed, self._train_batch_size
        block_size, repeats = args.images_at_once, args.times_learned
        rows: Dataset
        sampler: Sampler
        if is_stream(self.train_dataset):
            ranks = self.accelerator.num_processes, self.accelerator.process_index
            rows = self.stream = StreamRows(self.train_dataset, seed, batch_size, block_size, repeats, *ranks)
            sampler = RunningNumbers(args.max_steps, args.images_in_step, block_size, repeats)
        else:
            rows = RowDataset(self.train_dataset, seed, self._check_of_rows())
            sampler = EpochSampler(rows, seed, args.shuffle_dataset, block_size, repeats)
        loader = self._get_dataloader(rows, "Training", batch_size, sampler_fn=lambda _: sampler, is_training=True)
        return self._with_own_generator(loader)

    def _with_own_generator(self, loader: DataLoader) -> DataLoader:
        """Seed the workers from a generator of the loader's own.

        From torch's own a loader would draw at each pass, and one with persistent workers at the first: a resumed run would
        then have other dropout masks.
        """
        inner = getattr(loader, "base_dataloader", loader)  # inside of accelerate's
        inner.generator = torch.Generator().manual_seed(self.data_seed)
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one update step, and how many items the loss of the whole step is averaged over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self._items_in_step(batches)

    def _items_in_step(self, batches: list[dict]) -> float:
        """Over all micro-batches and ranks; remembers how many images they are."""
        images = sum(len(batch["row_index"]) for batch in batches)
        items, of_step = self._over_ranks([sum(map(self._count_items, batches)), images])
        self.num_images_in_step = int(of_step)
        return items

    def _over_ranks(self, counts: list[float]) -> list[float]:
        """Their sums over all processes."""
        counted = torch.tensor([counts], dtype=torch.float64, device=self.args.device)
        return self.accelerator.gather(counted).sum(0).tolist()

    def _check_of_rows(self) -> Callable | None:
        """Return the check that decides whether a row is skipped, or None where none is."""
        collator: Any = self.data_collator
        return collator.check_image if self.args.on_bad_row == "skip" else None

    def _tell_bad_rows(self, batch: dict) -> None:
        """Warn of each row that was skipped, once."""
        for problem in batch["columns"].bad_rows:
            if problem not in self._bad_rows:
                self._bad_rows.add(problem)
                logger.warning("%s The next row takes its place (on_bad_row).", problem)

    def _count_items(self, batch: dict) -> float:
        """Count what the loss is a mean over: the images of the batch; in MLE their tokens."""
        return len(batch["row_index"])

    def mean_over_step(self, values: torch.Tensor, num_items: float | None = None) -> torch.Tensor:
        """`values.sum()` as this micro-batch's share of the mean over the whole update step.

        Ranks are averaged by DDP and DeepSpeed, hence the factor. `num_items` defaults to the step's images: an
        auxiliary loss with one value an image is added as `self.mean_over_step(values)`. Outside of training the batch
        is the step, and of one rank.
        """
        if self.num_images_in_step is None:
            return values.sum() / (num_items or len(values))
        return values.sum() * self.accelerator.num_processes / (num_items or self.num_images_in_step)

    def _prepare_inputs(self, inputs):
        """Move a batch to the device, and add the labels that the completion decoder makes of dense targets."""
        self._tell_bad_rows(inputs)
        inputs = super()._prepare_inputs(inputs)
        if "targets" in inputs and self.completion_decoder is not None:
            with self.accelerator.autocast():
                inputs["labels"] = self.unwrap(self.completion_decoder).labels(inputs)
        return inputs

    def model_inputs(self, batch: dict) -> dict[str, Any]:
        """The images of a batch as the model takes them; a batch may carry `encoder_outputs (B, N, d)` instead."""
        return image_inputs(self.unwrap(self.model), batch)

    # --- completions, and their evaluation --------------------------------------------------------------------------

    def complete(self, batch: dict, num_generations: int = 1, do_sample: bool = True, **how) -> SampledCompletions:
        """Completions of the batch from the model as it stands; `how` goes to `vision_rl.models.sampling.sample`."""
        images: dict[str, Any] = images_of(batch)
        with self.accelerator.autocast():
            return sample(
                self.unwrap(self.model_wrapped),
                num_generations=num_generations,
                **images,
                max_completion_length=self.max_completion_length,
                do_sample=do_sample,
                watched_ids=self.processor.watched_ids,
                logits_processor=None if do_sample else self.processor.logits_processor,
                synced=self.gathers_weights(),
                **how,
            )

    def decode(self, completions: SampledCompletions, batch: dict) -> tuple[list, list[list[int]]]:
        """The decoded objects and the ids (end token included), one of each a completion, images in order."""
        return evaluation.decoded(completions, batch, self.processor, self.completion_decoder)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        if isinstance(eval_dataset, str):
            key, dataset = eval_dataset, self.eval_dataset[eval_dataset]
        elif eval_dataset is None or eval_dataset is self.eval_dataset:
            key, dataset = "eval", self.eval_dataset
        else:
            key, dataset = None, eval_dataset  # one that the constructor has not seen
            columns = self._check_evaluated(
                "eval_dataset", dataset, self.target_columns if self.learns_from_labels else {}
            )
            rows = dataset.dataset if isinstance(dataset, EncodedDataset) else dataset
            checks.check_rows("eval_dataset", rows, self.processor, self._checked_columns(self.args, columns), None)
            self._check_rewards("eval_dataset", columns)
        if dataset is None:
            raise ValueError("Evaluation needs an eval_dataset.")
        kept = getattr(self, "_eval_dataloaders", {}).get(key)  # with its workers, if those are persistent
        return (
            kept if kept is not None and kept.dataset.dataset is dataset else self._evaluation_dataloader(dataset, key)
        )

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        self._check_evaluated("test_dataset", test_dataset, {})
        empty = {column for column in self.target_columns.values() if has_no_values(test_dataset, column)}  # no labels
        return self._evaluation_dataloader(WithoutColumns(test_dataset, empty) if empty else test_dataset, None)

    def _check_evaluated(self, name: str, dataset, targets: dict[str, str]) -> list[str]:
        """A data set that evaluation or prediction brings has rows, with what completions are written about and `targets`.

        Returns its columns.
        """
        checks.check_dataset(name, dataset)
        read = [self.args.image_column, *self.processor.input_columns, *targets.values()]
        columns = checks.column_names(dataset)
        checks.check_columns(name, columns, read)
        return columns

    def _evaluation_dataloader(self, dataset, key: str | None) -> DataLoader:
        rows = RowDataset(dataset, check=self._check_of_rows())
        sampler = EpochSampler(rows, shuffle=False)
        size = self.args.eval_batch_size
        loader = self._get_dataloader(rows, "Evaluation", size, sampler_fn=lambda _: sampler, dataloader_key=key)
        return self._with_own_generator(loader)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test"):
        """The greedy completion of every row, in order; images without targets get no loss, reward or metric.

        A row that `on_bad_row="skip"` leaves out has the completion and the reference `None`.

        Returns:
            `PredictionOutput` with `predictions` (decoded completions), `label_ids` (references) and `metrics`.
        """
        self._predicting = True
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._predicting = False

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Every row once, on all ranks together; the metrics see the whole set."""
        in_step, self.num_images_in_step = self.num_images_in_step, None  # a loss in evaluation is that of its batch
        if not self._predicting:
            self.shown_answers.begin(self.state)
        records = evaluation.records_of(self, dataloader)
        self.num_images_in_step = in_step
        metrics = evaluation.on_main_process(lambda: self._evaluation_metrics(records), self.is_world_process_zero())
        answers: list[evaluation.Record] = records
        if self._predicting:  # every row has its place, also one that was left out
            of_row = {record["index"]: record for record in records}
            answers = [of_row.get(index, {}) for index in range(len(dataloader.dataset))]
        return EvalLoopOutput(
            predictions=[answer.get("completion") for answer in answers],  # type: ignore[arg-type]
            label_ids=[answer.get("reference") for answer in answers],  # type: ignore[arg-type]
            metrics={
                key if key.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{key}": value
                for key, value in metrics.items()
            },
            num_samples=len(records),
        )

    def _evaluate_batch(self, model: nn.Module, batch: dict) -> list[evaluation.Record]:
        """One record a row: its index, and its greedy completion and reference where they are asked for."""
        has_targets = self._has_targets(batch)
        records = [{"index": index, "has_targets": has_targets} for index in batch["row_index"].tolist()]
        if self._needs_completions():
            completions = self.complete(batch, do_sample=False)
            objects, ids = self.decode(completions, batch)
            references = batch["columns"].references
            for row, record in enumerate(records):
                record["completion"], record["completion_ids"] = objects[row], ids[row]
                record["reference"] = None if references is None else references[row]
        return records

    def _has_targets(self, batch: dict) -> bool:
        """False for the unlabelled images of a `predict`."""
        return set(self.target_columns.values()) <= set(batch["columns"].columns)

    def _needs_completions(self) -> bool:
        return self._predicting or self.compute_metrics is not None

    def _measures(self, metric: str) -> bool:
        """Whether an evaluation may have this metric without `compute_metrics`."""
        return metric == "loss"

    def _evaluation_metrics(self, records: list[evaluation.Record]) -> dict[str, float]:
        """Over the whole set; `records` is not empty."""
        return evaluation.metrics_of(records, self.compute_metrics)

    def _prepare_for_training(self, *args, **kwargs):
        if self.is_deepspeed_enabled:  # an engine that evaluation or an earlier training made is gone by now
            self.model_wrapped = self.model
        return super()._prepare_for_training(*args, **kwargs)

    # --- what is not finite ------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        return self.finite_check.watch(inputs, loss)

    def _get_grad_norm(self, model, grad_norm=None):
        """Called between the last gradient of an update step and the optimizer, on all ranks."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.finite_check.check(grad_norm)
        return grad_norm

    def leave_out_step(self) -> None:
        """Drop the gradients of the step, so that the optimizer moves neither weights nor its own moments."""
        self.model_wrapped.zero_grad()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.finite_check.num_skipped:
            logs["skipped_steps"] = self.finite_check.num_skipped
        if "loss" in logs and self.args.on_bad_row == "skip":
            problems = set(gather_object(sorted(self._bad_rows))) if self.args.world_size > 1 else self._bad_rows
            logs["skipped_rows"] = len(problems)
        super().log(logs, start_time)

    # --- optimiser --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW or any of Trainer's, or the paper's Adafactor; the encoder with its own learning rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            shards = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self.optimizer = make_optimizer(model, self.args, set(self.get_decay_parameter_names(model)), shards)
        return self.optimizer

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as Trainer does; without an argument `args.resume_from_checkpoint` counts, which Trainer ignores."""
        resume_from_checkpoint = resuming.folder_to_resume(self, resume_from_checkpoint)
        self.finite_check.forget()
        self.finite_check.num_skipped = 0
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception as error:
            checkpoints.keep_what_was_done(self, self._boundary, error)
            raise
        finally:
            self.num_images_in_step = None
            if self._progress is not None:
                self._progress.stop()

    def _run_epoch(self, *args, **kwargs):
        """Run an epoch, unless the run that is resumed had ended: Trainer would take a step more."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """Save a checkpoint aside, then rename it. With `save_retry` one failure alone is only a warning."""
        try:
            checkpoints.save_checkpoint(self, trial)
            self._save_failed = False
        except checkpoints.SaveError as error:
            if self._save_failed or not self.args.save_retry:
                raise
            self._save_failed = True
            logger.warning("%s. The run goes on, but it ends if the next checkpoint fails too (save_retry).", error)

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model as Trainer does; one that was saved there before is replaced when all of it is written."""
        folder = Path(str(output_dir or self.args.output_dir))
        if checkpoints.is_aside(folder):
            super().save_model(str(folder), _internal_call=True)
            return
        checkpoints.save_model(self, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """All weights, the encoder's too: Trainer's own way misses those that are saved under their older names."""
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel) and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            restore_weights(model, resume_from_checkpoint)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        resuming.check_best(self, Path(str(self.state.best_model_checkpoint)))
        whole = isinstance(self.model, PreTrainedModel | PeftModel) and not self.is_fsdp_enabled
        if whole and not self.is_deepspeed_enabled:  # Trainer's own way misses adapters that have a name, too
            self._load_from_checkpoint(self.state.best_model_checkpoint)
            return
        super()._load_best_model()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.stream is not None:
            num_asked = self.state.global_step * self.args.gradient_accumulation_steps * self._train_batch_size
            torch.save(self.stream.position(num_asked), self._stream_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        with naming(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if self.stream is not None and checkpoint is not None and os.path.isfile(self._stream_file(checkpoint)):
                self.stream.resume(torch.load(self._stream_file(checkpoint), weights_only=True))

    def _load_rng_state(self, checkpoint):
        with naming(checkpoint):
            super()._load_rng_state(checkpoint)

    def _stream_file(self, checkpoint: str) -> str:
        """Return the file with this rank's place in its share of the stream."""
        return os.path.join(checkpoint, f"stream_{self.args.process_index}.pt")

    def _save(self, output_dir=None, state_dict=None):
        """One folder with all that the tuned model needs: model, processor and, if there is one, `stage1/`."""
        super()._save(output_dir, state_dict)
        folder = str(self.args.output_dir if output_dir is None else output_dir)
        adapted = isinstance(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), PeftModel)
        if adapted and self.args.should_save:
            self.unwrap(self.model).generation_config.save_pretrained(folder)  # PEFT saves the adapters alone
        parts = [] if self.completion_decoder is None else self.unwrap(self.completion_decoder).modules()
        stage1 = next((part for part in parts if isinstance(part, PreTrainedModel)), None)
        if stage1 is not None and self.args.should_save:
            stage1.save_pretrained(os.path.join(folder, STAGE1_FOLDER))
        if self.args.should_save:
            hub.save_arguments_without_token(self.args, folder)

    # --- the Hub ----------------------------------------------------------------------------------------------------

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `args.output_dir`: `vision_rl.trainer.model_card`. Arguments as in TRL.

        Args:
            model_name: default: the folder's.
            dataset_name: Hub name or another one of what it was trained on; default: the one of the last call.
            tags: beside those of the trainer.
        """
        self.dataset_name = dataset_name or self.dataset_name
        given = [tags] if isinstance(tags, str) else list(tags or ())
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            write_card(self, folder, model_name, self.dataset_name, [*dict.fromkeys([*given, *self._tag_names])])

    def init_hf_repo(self, token: str | None = None, **how) -> None:  # type: ignore[override]
        super().init_hf_repo(token=token, **how)
        hub.create_branch(self, token)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        hub.push_checkpoint(self, Path(checkpoint_folder))

    def floating_point_ops(self, inputs) -> int:
        return 0  # Trainer's estimate counts the tokens of a language model's input
