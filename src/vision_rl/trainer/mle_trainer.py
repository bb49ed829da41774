"""Step 1 of the paper: imitate the labels (maximum likelihood)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from vision_rl.models.lengths import num_positions
from vision_rl.models.special_ids import special_ids
from vision_rl.models.uvim import UViMDecoder
from vision_rl.trainer import checks
from vision_rl.trainer.collator import CODES, VisionCollator
from vision_rl.trainer.losses import mle_loss
from vision_rl.trainer.mle_config import VisionMLEConfig
from vision_rl.trainer.vision_trainer import VisionTrainer, name_of_model


class VisionMLETrainer(VisionTrainer):
    """Maximum-likelihood pretraining of a model that writes its answer as tokens (paper, section 3, Algorithm 1).

    The loss is the mean over all label tokens of the update step, whatever its split into micro-batches and ranks; a
    processor may weigh them (`label_weights`).
    Add an auxiliary loss in a subclass:

    ```python
    class DenseMLETrainer(VisionMLETrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            dense = self.dense_loss(outputs.encoder_last_hidden_state, inputs["columns"])  # (B,)
            loss = loss + self.mean_over_step(dense)
            return (loss, outputs) if return_outputs else loss
    ```

    Args:
        model: a `VisionEncoderDecoderModel`, one inside PEFT, or the name or path of one.
        args: options; default `VisionMLEConfig("<model>-MLE")`.
        train_dataset, eval_dataset: rows with an image and the processor's target columns.
        processing_class: a processor of the data protocol (`vision_rl.processing`), or any transformers processor
            with an image processor and a tokenizer.
        compute_metrics: `compute_metrics(predictions=, references=) -> dict` over the greedy completions of the whole
            evaluation set, as an evaluate module's `compute`; without it only `eval_loss` is computed.
        callbacks, optimizers, peft_config: as in TRL's trainers.
        completion_decoder: `completion_decoder(completion_ids (B, G, T), batch) -> list of B*G objects`, in place of
            `processing_class.batch_decode`; `batch["completion_mask"]` tells the ids from the padding behind them. A
            `UViMDecoder` also makes the labels, where the rows have no column `codes`.
    """

    learns_from_labels = True
    _tag_names = ["vision_rl", "mle"]

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VisionMLEConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        completion_decoder: nn.Module | None = None,
    ):
        args = args or VisionMLEConfig(f"{name_of_model(model)}-MLE")
        checks.check_config(self, args, VisionMLEConfig)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            completion_decoder=completion_decoder,
        )

    def _make_collator(self, args, datasets) -> VisionCollator:
        """Of a model that writes stage I codes, rows without a column `codes` give the dense targets to make them of."""
        if not isinstance(self.completion_decoder, UViMDecoder):
            return super()._make_collator(args, datasets)
        with_codes = [CODES in checks.column_names(dataset) for dataset in datasets.values()]
        if all(with_codes):
            return super()._make_collator(args, datasets)
        if any(with_codes):
            raise ValueError(f"Some data sets have a column `{CODES}` and others have not: give it to all or to none.")
        process = self.completion_decoder.processor.dense
        return VisionCollator(self.processor, args.image_column, self.target_columns, True, process)

    def _prepare_inputs(self, inputs):
        """On the device; with the labels that stage I makes of dense targets."""
        inputs = super()._prepare_inputs(inputs)
        if "targets" in inputs:
            stage1: nn.Module = self.completion_decoder  # type: ignore[assignment]
            inputs["labels"] = self.bare(stage1).labels(inputs)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, labels = self._teacher_forced(model, inputs)
        smoothing = self.args.label_smoothing_factor
        loss = mle_loss(outputs.logits, labels, smoothing, inputs.get("label_weights"))
        loss = self.mean_over_step(loss, num_items_in_batch or self._count_items(inputs))
        return (loss, outputs) if return_outputs else loss

    def _teacher_forced(self, model: nn.Module, inputs: dict):
        """Logits for the labels, each predicted from those before it."""
        policy = self.bare(model)
        ids, positions = special_ids(policy), num_positions(policy)
        labels = inputs["labels"]  # (B, T)
        if positions is not None and labels.shape[1] > positions:
            row = inputs["row_index"][(labels != -100).sum(1).argmax()].item()
            raise ValueError(
                f"Row {row} has labels of {labels.shape[1]} tokens, the decoder has only {positions} positions: "
                "shorten them, or build the decoder with a larger max_position_embeddings."
            )
        decoder_input_ids = F.pad(labels[:, :-1], (1, 0), value=ids.decoder_start).masked_fill(
            F.pad(labels[:, :-1], (1, 0)) == -100, ids.pad
        )
        return model(**self.model_inputs(inputs), decoder_input_ids=decoder_input_ids, use_cache=False), labels

    def _count_items(self, batch) -> float:
        if "targets" in batch:  # the labels are yet to be made
            return float(len(batch["row_index"]) * self.max_completion_length)
        return float(_token_weights(batch).sum())

    def _evaluate_batch(self, model, batch) -> list[dict]:
        records = super()._evaluate_batch(model, batch)
        if "labels" not in batch:
            return records
        with self.accelerator.autocast():
            outputs, labels = self._teacher_forced(model, batch)
        losses = mle_loss(outputs.logits, labels, label_weights=batch.get("label_weights"))  # (B, T)
        for record, loss, tokens in zip(records, losses.sum(1), _token_weights(batch).sum(1), strict=True):
            record["loss"], record["tokens"] = loss.item(), tokens.item()
        return records

    def _evaluation_metrics(self, records) -> dict[str, float]:
        metrics = super()._evaluation_metrics(records)
        if "loss" not in records[0]:
            return metrics
        loss = sum(record["loss"] for record in records) / sum(record["tokens"] for record in records)
        return {"loss": loss, **metrics}


def _token_weights(batch: dict) -> torch.Tensor:
    """`(B, T)`: what each label counts in the mean, 0 for -100."""
    learned = (batch["labels"] != -100).float()
    return learned * batch["label_weights"] if "label_weights" in batch else learned
