"""Stage I of UViM: learn to write dense maps as codes, and to read them back (paper, section 4.1)."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from vision_rl.models.uvim import UViMModel, check_stage1
from vision_rl.processing import DenseProcessor
from vision_rl.trainer import checks
from vision_rl.trainer.collator import VisionCollator
from vision_rl.trainer.loading import name_of_model
from vision_rl.trainer.mle_config import VisionMLEConfig
from vision_rl.trainer.vision_trainer import VisionTrainer


class CodebookCallback(TrainerCallback):
    """Updates the codebook once an optimisation step, from all micro-batches and ranks."""

    def __init__(self, trainer: "Stage1Trainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.unwrap(self.trainer.model).codebook.collected = None  # of passes that belong to no step

    def on_optimizer_step(self, args, state, control, **kwargs):
        stage1 = self.trainer.unwrap(self.trainer.model_wrapped)
        if stage1.codebook.collected is not None:  # not of a step that was left out
            self.trainer.codebook_metrics = stage1.update_codebook()


class Stage1Trainer(VisionTrainer):
    """Trains a `UViMModel`; its processor makes dense targets (`processor.dense`) and reads them (`from_dense`).

    The loss is the mean over the images of the update step. Evaluation writes each map as codes and reads it back, so that
    `compute_metrics` tells how good stage II can become at best.

    Args:
        model: a `UViMModel`.
        args: options; default `VisionMLEConfig("<model>-stage1")`.
        train_dataset, eval_dataset: rows with an image and the processor's target columns.
        processing_class: such as `PanopticProcessor` or `ColorizationProcessor`.
        compute_metrics: `compute_metrics(predictions=, references=) -> dict` over the reconstructions.
        callbacks, optimizers: as in transformers' Trainer.
    """

    args: VisionMLEConfig
    processor: DenseProcessor
    learns_from_labels = True
    _tag_names = ["vision_rl", "uvim"]
    learned_by = "trained as stage I of UViM (dense maps as codes)"

    def __init__(
        self,
        model: UViMModel,
        args: VisionMLEConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        if not isinstance(model, UViMModel):
            raise TypeError(f"Stage1Trainer trains a UViMModel, not a {type(model).__name__}.")
        args = args or VisionMLEConfig(f"{name_of_model(model)}-stage1")
        checks.check_config(self, args, VisionMLEConfig)
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect on stage I: leave it out.")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.codebook_metrics: dict[str, float] = {}
        self.add_callback(CodebookCallback(self))

    def _prepare_model(self, policy: Any, args, processing_class) -> None:
        if not isinstance(processing_class, DenseProcessor):
            raise TypeError(
                f"processing_class is a {type(processing_class).__name__}; stage I needs one that makes dense targets, "
                "such as PanopticProcessor, ColorizationProcessor, or a DenseProcessor of your own."
            )
        check_stage1(policy.config, processing_class)
        self.processor = processing_class
        self.max_completion_length = policy.config.code_length

    def _make_collator(self, args, datasets) -> VisionCollator:
        return VisionCollator(
            self.processor, args.image_column, self.target_columns, with_labels=True, process=self.processor.dense
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["pixel_values"], inputs["targets"])
        num_images = len(inputs["row_index"])
        loss = self.mean_over_step(outputs.loss * num_images, num_items_in_batch or num_images)
        return (loss, outputs) if return_outputs else loss

    def leave_out_step(self) -> None:
        super().leave_out_step()
        self.unwrap(self.model).codebook.collected = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.codebook_metrics)
        super().log(logs, start_time)

    # --- evaluation: how much of a map its codes keep ------------------------------------------------------------------

    def _needs_completions(self) -> bool:
        return False  # nothing is sampled: `_evaluate_batch` makes the reconstructions

    def _evaluate_batch(self, model, batch) -> list[dict]:
        if "targets" not in batch:
            raise ValueError("Stage I writes maps as codes: the rows need the target columns, in prediction too.")
        records = super()._evaluate_batch(model, batch)
        for row, record in enumerate(records):  # one by one: the loss is a mean over the batch
            one = {name: target[row : row + 1] for name, target in batch["targets"].items()}
            with self.accelerator.autocast():
                record["loss"] = model(batch["pixel_values"][row : row + 1], one).loss.item()
        if super()._needs_completions():
            stage1 = self.unwrap(model)
            with self.accelerator.autocast():
                codes = stage1.encode(batch["targets"], batch["pixel_values"])
                outputs = stage1.decode(codes, batch["pixel_values"])
            for row, (record, made) in enumerate(
                zip(records, self.processor.from_dense(outputs, batch["pixel_values"]), strict=True)
            ):
                record["completion"], record["reference"] = made, batch["columns"].references[row]
        return records

    def _evaluation_metrics(self, records) -> dict[str, float]:
        metrics = super()._evaluation_metrics(records)
        return {"loss": torch.tensor([record["loss"] for record in records]).mean().item(), **metrics}
