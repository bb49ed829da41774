"""Greedy evaluation: every row once, on all ranks together, metrics over the whole set. What trainers do with records."""

from collections.abc import Callable, Collection
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_init

from vision_rl.models.completions import SampledCompletions
from vision_rl.processing import VisionProcessor
from vision_rl.trainer.metric_functions import scalars_of
from vision_rl.trainer.scoring import Scores


if TYPE_CHECKING:
    from vision_rl.trainer.vision_trainer import VisionTrainer

# A row's record: `index`, `has_targets`, and where there are, `completion`, `completion_ids`, `reference` and what a
# trainer adds to it. Plain objects, which ranks exchange.
Record = dict[str, Any]


def decoded(
    completions: SampledCompletions, batch: dict, processor: VisionProcessor, completion_decoder: nn.Module | None
) -> tuple[list, list[list[int]]]:
    """The decoded objects and the ids (end token included), one of each a completion, images in order."""
    lengths = completions.completion_mask.flatten(0, 1).sum(-1).tolist()
    ids = [row[:n] for row, n in zip(completions.completion_ids.flatten(0, 1).tolist(), lengths, strict=True)]
    if completion_decoder is not None:
        with torch.no_grad():
            batch = {**batch, "completion_mask": completions.completion_mask}
            return list(completion_decoder(completions.completion_ids, batch)), ids
    times, watched = completions.completion_ids.shape[1], completions.watched_logps
    objects = processor.decode_completions(
        ids,
        per_token_logps=completions.per_token_logps.flatten(0, 1).cpu(),
        watched_logps=None if watched is None else watched.flatten(0, 1).cpu(),
        image_sizes=[size for size in batch["columns"].image_sizes for _ in range(times)],
    )
    return list(objects), ids


def records_of(trainer: "VisionTrainer", dataloader: DataLoader) -> list[Record]:
    """The records of all rows, each once and in order, on every rank."""
    model = model_for_evaluation(trainer, trainer.gathers_weights())
    model.eval()
    optimizer: Any = trainer.optimizer
    if callable(getattr(optimizer, "eval", None)):  # a schedule-free one evaluates the mean of its iterates
        optimizer.eval()
    trainer.callback_handler.eval_dataloader = dataloader
    measures = not trainer._predicting and hasattr(trainer.compute_metrics, "per_image")
    records: list[Record] = []
    for batch in dataloader:
        batch = trainer._prepare_inputs(batch)
        with torch.no_grad():
            of_batch = trainer._evaluate_batch(model, batch)
        if not trainer._predicting:
            trainer.shown_answers.record(of_batch, batch["columns"])
        if measures and trainer._has_targets(batch):
            of_batch = measured(of_batch, trainer.compute_metrics)
        records += of_batch
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    return of_all_ranks(records)


def measured(records: list[Record], compute_metrics: Callable) -> list[Record]:
    """Replace completions and references by what an image-by-image metric keeps of them.

    Maps of 512 x 512 are a megabyte each, and ranks exchange the records of the whole set.
    """
    kept = compute_metrics.per_image(  # type: ignore[attr-defined]
        predictions=[record.pop("completion") for record in records],
        references=[record.pop("reference") for record in records],
    )
    return [{**record, "measured": one} for record, one in zip(records, kept, strict=True)]


def of_all_ranks(records: list[Record]) -> list[Record]:
    """The records of all ranks, each row once and in order. A rank's last batch may repeat rows that another rank has."""
    by_index = {record["index"]: record for record in gather_object(records)}
    return [by_index[index] for index in sorted(by_index)]


def on_main_process(compute: Callable[[], dict], is_main: bool) -> dict:
    """Call `compute` on the main process, and return its result, or raise its error, on all ranks."""
    result: list = [None, None]
    if is_main:
        try:
            result[0] = compute()
        except Exception as error:
            result[1] = f"{type(error).__name__}: {error}"
            raise
        finally:
            broadcast_object_list(result)
        return result[0]
    broadcast_object_list(result)
    if result[1] is not None:
        raise RuntimeError(f"The metrics could not be computed on the main process: {result[1]}")
    return result[0]


def metrics_of(records: list[Record], compute_metrics: Callable | None) -> dict[str, float]:
    """The scalars that `compute_metrics` returns for the whole set of `records`, which must not be empty."""
    if compute_metrics is None or not records[0]["has_targets"]:
        return {}
    if "measured" in records[0]:
        metrics = compute_metrics.summary([record["measured"] for record in records])  # type: ignore[attr-defined]
    else:
        metrics = compute_metrics(
            predictions=[record["completion"] for record in records],
            references=[record["reference"] for record in records],
        )
    return scalars_of(metrics)


def add_scores(records: list[Record], scores: Scores) -> None:
    """Adds to each record of a batch its reward, those of the functions, and what these have logged of the batch."""
    for record, reward, parts in zip(records, scores.rewards, scores.per_function, strict=True):
        record["reward"], record["rewards"], record["logged"] = reward.item(), parts.tolist(), scores.logged


def reward_metrics(records: list[Record], names: list[str], taken: Collection[str] = ()) -> dict[str, float]:
    """Means over the whole set, of the greedy completions' length and, where they were scored, of their rewards.

    What the rewards have logged is under `rewards/` where its name is one of those `taken` by the metrics.
    """
    metrics = {"completions/mean_length": fmean(len(record["completion_ids"]) for record in records)}
    if "reward" not in records[0]:
        return metrics
    metrics["reward"] = torch.tensor([record["reward"] for record in records]).nanmean().item()
    per_function = torch.tensor([record["rewards"] for record in records])  # (N, F)
    for name, mean in zip(names, per_function.nanmean(0).tolist(), strict=True):
        metrics[f"rewards/{name}/mean"] = mean
    for name in {name: None for record in records for name in record["logged"]}:
        metrics[f"rewards/{name}" if name in taken else name] = fmean(
            record["logged"][name] for record in records if name in record["logged"]
        )
    return metrics


def model_for_evaluation(trainer: Trainer, gathers_weights: bool) -> nn.Module:
    """The model as it is trained; before training the model itself, or ZeRO-3's engine, where ranks hold it in shards.

    Trainer would let accelerate prepare the model here, which marks it so that a later `train()` leaves out
    DistributedDataParallel: every rank would train a model of its own.
    """
    model: Any = trainer.model
    if trainer.model_wrapped is model and trainer.is_deepspeed_enabled and gathers_weights:
        deepspeed_init(trainer, num_training_steps=0, inference=True)
        trainer.deepspeed = trainer.model_wrapped = trainer.accelerator.prepare(model)
    elif trainer.model_wrapped is model and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        model.to(trainer.args.device)  # Trainer leaves this to the engine, which only training makes
    return trainer.model_wrapped
