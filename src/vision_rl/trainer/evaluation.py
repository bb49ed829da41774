"""Greedy evaluation: every row once, on all ranks together, metrics over the whole set."""

from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.sampling import sample
from vision_rl.models.unwrapping import base_model
from vision_rl.processing import VisionProcessor
from vision_rl.trainer import checks
from vision_rl.trainer.data_order import EpochSampler, RowDataset
from vision_rl.trainer.vision_config import VisionConfig


class CompletingTrainer(Trainer):
    """A Trainer whose model completes images with tokens, and is judged by what the completions say.

    The half of `VisionTrainer` that needs no gradient.
    """

    args: VisionConfig
    model: Any  # Trainer's own annotations allow None, or another form, where there is none here
    eval_dataset: Any
    compute_metrics: Any
    deepspeed: Any
    processor: VisionProcessor
    target_columns: dict[str, str]
    max_completion_length: int
    completion_decoder: nn.Module | None
    _predicting = False

    def bare(self, model: nn.Module) -> Any:
        """The transformers model inside whatever DDP, DeepSpeed, `torch.compile` and PEFT have put around it."""
        return base_model(self.accelerator.unwrap_model(model, keep_torch_compile=False))

    # --- completions --------------------------------------------------------------------------------------------------

    def complete(self, batch: dict, num_generations: int = 1, **how) -> SampledCompletions:
        """Completions of the batch from the model as it stands; `how` goes to `vision_rl.models.sampling.sample`."""
        with self.accelerator.autocast():
            return sample(
                self.bare(self.model_wrapped),
                batch.get("pixel_values"),
                num_generations,
                encoder_outputs=batch.get("encoder_outputs"),
                max_completion_length=self.max_completion_length,
                watched_ids=self.processor.watched_ids,
                synced=self._gathers_weights(),
                **how,
            )

    def decode(self, completions: SampledCompletions, batch: dict) -> tuple[list, list[list[int]]]:
        """The decoded objects and the ids (end token included), one of each a completion, images in order."""
        lengths = completions.completion_mask.flatten(0, 1).sum(-1).tolist()
        ids = [row[:n] for row, n in zip(completions.completion_ids.flatten(0, 1).tolist(), lengths, strict=True)]
        if self.completion_decoder is not None:
            with torch.no_grad():
                batch = {**batch, "completion_mask": completions.completion_mask}
                return list(self.completion_decoder(completions.completion_ids, batch)), ids
        times = completions.completion_ids.shape[1]
        watched = completions.watched_logps
        decoded = self.processor.decode_completions(
            ids,
            per_token_logps=completions.per_token_logps.flatten(0, 1).cpu(),
            watched_logps=None if watched is None else watched.flatten(0, 1).cpu(),
            image_sizes=[size for size in batch["columns"].image_sizes for _ in range(times)],
        )
        return list(decoded), ids

    def _gathers_weights(self) -> bool:
        zero = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return self.is_fsdp_enabled or (zero is not None and zero.zero_stage == 3)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        if isinstance(eval_dataset, str):
            key, dataset = eval_dataset, self.eval_dataset[eval_dataset]
        elif eval_dataset is None or eval_dataset is self.eval_dataset:
            key, dataset = "eval", self.eval_dataset
        else:
            key, dataset = None, eval_dataset  # one that the constructor has not seen
            self._check_evaluated("eval_dataset", dataset, [self.args.image_column, *self.target_columns.values()])
        if dataset is None:
            raise ValueError("Evaluation needs an eval_dataset.")
        kept = getattr(self, "_eval_dataloaders", {})  # with their workers, if those are persistent
        return kept[key] if key in kept else self._evaluation_dataloader(dataset, key)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        self._check_evaluated("test_dataset", test_dataset, [self.args.image_column])
        return self._evaluation_dataloader(test_dataset, None)

    def _check_evaluated(self, name: str, dataset, columns: list[str]) -> None:
        """What the constructor checks of its own data sets, for one that evaluation or prediction brings."""
        checks.check_dataset(name, dataset)
        checks.check_columns(name, checks.column_names(dataset), columns)

    def _evaluation_dataloader(self, dataset, key: str | None) -> DataLoader:
        rows = RowDataset(dataset)
        return self._get_dataloader(
            rows,
            "Evaluation",
            self.args.eval_batch_size,
            sampler_fn=lambda _: EpochSampler(rows, shuffle=False),
            dataloader_key=key,
        )

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test"):
        """The greedy completion of every row, in order; images without targets get no loss, reward or metric.

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
        model = self._model_for_evaluation()
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        records = []
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with torch.no_grad():
                records.extend(self._reduced(self._evaluate_batch(model, batch)))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        # The last batch of a rank may be filled up with rows that another rank has as well.
        by_index = {record["index"]: record for record in gather_object(records)}
        records = [by_index[index] for index in sorted(by_index)]
        metrics = [self._evaluation_metrics(records) if self.is_world_process_zero() else None]
        metrics = broadcast_object_list(metrics)[0]
        return EvalLoopOutput(
            predictions=[record.get("completion") for record in records],  # type: ignore[arg-type]
            label_ids=[record.get("reference") for record in records],  # type: ignore[arg-type]
            metrics={
                key if key.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{key}": value
                for key, value in metrics.items()
            },
            num_samples=len(records),
        )

    def _model_for_evaluation(self) -> nn.Module:
        """The model as it is trained; before training the bare one, or ZeRO-3's engine, where ranks hold it in shards.

        Trainer would let accelerate prepare the bare model here, which marks it so that a later `train()` leaves out
        DistributedDataParallel: every rank would train a model of its own.
        """
        if self.model_wrapped is self.model and self.is_deepspeed_enabled and self._gathers_weights():
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.deepspeed = self.model_wrapped = self.accelerator.prepare(self.model)
        elif self.model_wrapped is self.model and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self.model.to(self.args.device)  # Trainer leaves this to the engine, which only training makes
        return self.model_wrapped

    def _prepare_for_training(self, *args, **kwargs):
        if self.is_deepspeed_enabled:  # an engine that evaluation or an earlier training made is gone by now
            self.model_wrapped = self.model
        return super()._prepare_for_training(*args, **kwargs)

    def _evaluate_batch(self, model: nn.Module, batch: dict) -> list[dict]:
        """One record a row, plain objects: `index`, and `completion` and `reference` where there are."""
        has_targets = self._has_targets(batch)
        records = [{"index": index, "has_targets": has_targets} for index in batch["row_index"].tolist()]
        if self._needs_completions():
            completions = self.complete(batch, do_sample=False)
            decoded, ids = self.decode(completions, batch)
            references = batch["columns"].references
            for row, record in enumerate(records):
                record["completion"], record["completion_ids"] = decoded[row], ids[row]
                record["reference"] = None if references is None else references[row]
        return records

    def _reduced(self, records: list[dict]) -> list[dict]:
        """The records of a batch with what a metric that goes image by image keeps of them, in place of what it read.

        Maps of 512 x 512 are a megabyte each, and ranks exchange the records of the whole set.
        """
        if self._predicting or not records[0]["has_targets"] or not hasattr(self.compute_metrics, "per_image"):
            return records
        kept = self.compute_metrics.per_image(
            predictions=[record.pop("completion") for record in records],
            references=[record.pop("reference") for record in records],
        )
        return [{**record, "measured": measured} for record, measured in zip(records, kept, strict=True)]

    def _has_targets(self, batch: dict) -> bool:
        """False for the unlabelled images of a `predict`."""
        return set(self.target_columns.values()) <= set(batch["columns"].columns)

    def _needs_completions(self) -> bool:
        return self._predicting or self.compute_metrics is not None

    def _evaluation_metrics(self, records: list[dict]) -> dict[str, float]:
        """Over the whole set; `records` is not empty."""
        if self.compute_metrics is None or not records[0]["has_targets"]:
            return {}
        if "measured" in records[0]:
            metrics = self.compute_metrics.summary([record["measured"] for record in records])
        else:
            metrics = self.compute_metrics(
                predictions=[record["completion"] for record in records],
                references=[record["reference"] for record in records],
            )
        checks.check_metric_result(metrics)
        return {key: float(value) for key, value in metrics.items() if _is_scalar(value)}


def _is_scalar(value) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "ndim") and value.ndim == 0)
