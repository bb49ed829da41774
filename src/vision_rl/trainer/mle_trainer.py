"""Step 1 of the paper: imitate the labels (maximum likelihood)."""

from collections.abc import Callable
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from vision_rl.models.log_prob_head import FusedHead, label_tokens
from vision_rl.trainer import checks
from vision_rl.trainer.encoding import images_of
from vision_rl.trainer.evaluation import Record
from vision_rl.trainer.loading import name_of_model
from vision_rl.trainer.losses import mle_loss
from vision_rl.trainer.mle_config import VisionMLEConfig
from vision_rl.trainer.teacher_forcing import can_fuse_head, label_loss, label_weights, read_labels
from vision_rl.trainer.vision_trainer import VisionTrainer


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
        model: a `VisionEncoderDecoderModel`, Pix2Struct, Florence-2 or BLIP's captioner, one inside PEFT, or the name or path
            of one.
        args: options; default `VisionMLEConfig("<model>-MLE")`.
        train_dataset, eval_dataset: rows with an image and the processor's target columns.
        processing_class: a processor of the data protocol (`vision_rl.processing`), or any transformers processor
            with an image processor and a tokenizer.
        compute_metrics: `compute_metrics(predictions=, references=) -> dict` over the greedy completions of the whole
            evaluation set; also an evaluate module, its path, or a list of these; without it only `eval_loss` is computed.
        callbacks, optimizers, peft_config: as in TRL's trainers.
        completion_decoder: `completion_decoder(completion_ids (B, G, T), batch) -> list of B*G objects`, in place of
            `processing_class.batch_decode`; `batch["completion_mask"]` tells the ids from the padding behind them. A
            `UViMDecoder` also makes the labels, where the rows have no column `codes`.
    """

    learns_from_labels = True
    _head_can_be_fused: bool | None = None
    _tag_names = ["vision_rl", "mle"]
    learned_by = "trained on labels (maximum likelihood)"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VisionMLEConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | Any = None,
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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        policy, images, weights = self.unwrap(model), self.model_inputs(inputs), inputs.get("label_weights")
        smoothing = self.args.label_smoothing_factor  # gives each token of the vocabulary a weight
        if not return_outputs and not smoothing and self._fuses_head(policy, inputs):
            with FusedHead(policy.get_output_embeddings()).loss_of(label_tokens(inputs["labels"], weights)):
                loss = read_labels(policy, model, images, inputs).logits
        else:
            outputs = read_labels(policy, model, images, inputs)
            loss = mle_loss(outputs.logits, inputs["labels"], smoothing, weights)
        loss = self.mean_over_step(loss, num_items_in_batch or self._count_items(inputs))
        return (loss, outputs) if return_outputs else loss

    def _fuses_head(self, policy, inputs: dict) -> bool:
        """Whether a step can do without the whole logits; found out at the first step."""
        if self._head_can_be_fused is None:
            self._head_can_be_fused = can_fuse_head(self, policy, images_of(inputs))
        return self._head_can_be_fused

    def _count_items(self, batch) -> float:
        if "targets" in batch:  # the labels are yet to be made
            return float(len(batch["row_index"]) * self.max_completion_length)
        return float(label_weights(batch).sum())

    def _evaluate_batch(self, model, batch) -> list[Record]:
        records = super()._evaluate_batch(model, batch)
        if "labels" not in batch:
            return records
        with self.accelerator.autocast():
            losses = label_loss(self.unwrap(model), model, self.model_inputs(batch), batch)  # (B, T)
        for record, loss, tokens in zip(records, losses.sum(1), label_weights(batch).sum(1), strict=True):
            record["loss"], record["tokens"] = loss.item(), tokens.item()
        return records

    def _evaluation_metrics(self, records) -> dict[str, float]:
        metrics = super()._evaluation_metrics(records)
        if "loss" not in records[0]:
            return metrics
        loss = sum(record["loss"] for record in records) / sum(record["tokens"] for record in records)
        return {"loss": loss, **metrics}
