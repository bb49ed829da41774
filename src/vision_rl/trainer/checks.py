"""Mistakes that can be seen before an hour of training, each told in a sentence that says what to do."""

import difflib
import inspect
import logging
import os
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from transformers import TrainingArguments

from vision_rl.columns import check_values, stored_pictures
from vision_rl.compatibility import checkpointing, checkpointing_kwargs
from vision_rl.processing import DenseProcessor, VisionProcessor
from vision_rl.trainer.collator import CODES, ENCODER_OUTPUTS, VisionCollator
from vision_rl.trainer.data_order import RowDataset, RowKey
from vision_rl.trainer.vision_config import VisionConfig


logger = logging.getLogger(__name__)

NUM_READ_BACK = 8  # rows whose labels are decoded before training
NUM_VIEWED, NUM_VIEWS = 4, 8  # rows whose views are compared, and how many of each
PROMPT = " It is what the model reads beside the image: dataset.add_column('prompt', ['<CAPTION>'] * len(dataset))."
# What every reward is given beside the data set's columns (TRL's names).
REWARD_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "references",
    "trainer_state",
    "log_metric",
    "log_extra",
)


def check_config(trainer: object, args: Any, kind: type) -> None:
    """Check that the options are of the class that this trainer takes."""
    if not isinstance(args, kind):
        raise TypeError(f"args is a {type(args).__name__}; {type(trainer).__name__} takes a {kind.__name__}.")


def named_datasets(train_dataset, eval_dataset) -> dict[str, Any]:
    """Every data set that was given, under the name that error messages use."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    named = {"eval_dataset" if key is None else f"eval_dataset[{key!r}]": value for key, value in evals.items()}
    return {name: value for name, value in {"train_dataset": train_dataset, **named}.items() if value is not None}


def check_dataset(name: str, dataset) -> None:
    """A map-style data set with at least one row, which is a dict."""
    if isinstance(dataset, str | PathLike | Image.Image):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}; it must hold rows, such as [{{'image': 'a.png'}}]. datasets.load_dataset "
            "loads a data set by its name, and vision_rl.pipeline(folder)('a.png') answers a picture."
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}, which has no length and index. Only a train_dataset may be such a stream, "
            "as a datasets.IterableDataset or a torch one: load it with streaming=False, or take some rows, "
            "list(dataset.take(500))."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: it has no rows.")
    if isinstance(dataset, list | tuple) and isinstance(dataset[0], str | PathLike | Image.Image):
        raise TypeError(
            f"{name} is a list of {type(dataset[0]).__name__}, but a row is a dict, such as {{'image': 'a.png'}}: "
            f"pass [{{'image': each}} for each in {name}]."
        )


def check_stream(args: VisionConfig) -> None:
    """What a stream cannot do without, and what has no effect on it."""
    if args.max_steps <= 0:
        raise ValueError("train_dataset is a stream, whose length is not known: set max_steps.")
    if args.dataloader_num_workers > 0:
        raise ValueError(
            "dataloader_num_workers must be 0 with a stream: each worker would read all of it. The stream itself can read "
            "and decode ahead, in threads: dataset.decode(num_threads=8)."
        )
    if args.ignore_data_skip:
        raise ValueError(
            "ignore_data_skip must be False with a stream: a resumed run goes on where the checkpoint says that the stream was."
        )
    if args.on_bad_row == "skip":
        raise ValueError('on_bad_row="skip" needs a data set with a length: in a stream every later row would move.')
    if args.shuffle_dataset:
        logger.warning(
            "train_dataset is a stream: its rows come in its own order. Shuffle it with dataset.shuffle(seed=0, "
            "buffer_size=1000); shuffle_dataset=False silences this warning."
        )


def check_best_metric(args: TrainingArguments, eval_dataset, has_metric: Callable[[str], bool]) -> None:
    """The metric that chooses the best model, a plateau or an early stop is one that the evaluations will have.

    `has_metric` says whether an evaluation of one data set may have a metric of this name.
    """
    if args.metric_for_best_model is None or args.eval_strategy == "no":
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    if isinstance(eval_dataset, dict):
        named = [name for name in eval_dataset if metric.startswith(f"{name}_")]
        if not named:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} does not say which of the data sets "
                f"{list(eval_dataset)} chooses the best model: write for example 'eval_{next(iter(eval_dataset))}_{metric}'."
            )
        metric = metric.removeprefix(f"{max(named, key=len)}_")
    if not has_metric(metric):
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r}, but no evaluation will have it: give compute_metrics, a "
            "function that returns it, or name another one."
        )


def column_names(dataset) -> list[str]:
    """The columns that a row has: of a `datasets.Dataset` also those that its transform makes."""
    readable = RowDataset(
        dataset, check=lambda row: None
    )  # an unreadable first row is told, or skipped, by its own check
    try:
        return list(readable[RowKey(0, 0)].columns)
    except ValueError:
        return list(RowDataset(dataset)[RowKey(0, 0)].columns)  # none can be read: in the first one's words


def check_columns(name: str, columns: list[str], wanted: Iterable[str]) -> None:
    for column in wanted:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            hint += PROMPT if column == "prompt" else ""
            raise ValueError(
                f"{name} has no column `{column}`; it has {', '.join(f'`{c}`' for c in columns)}.{hint} Column names "
                "are set by `image_column` and `target_columns` of the config."
            )


def check_trainable(model: nn.Module, args: TrainingArguments) -> None:
    """Something is trained, and nothing that is trained is cut off by how activations are recomputed."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter of the model is trained. For adapters, load them as PeftModel.from_pretrained(base_model, path, "
            "is_trainable=True), or give a peft_config."
        )
    options = checkpointing_kwargs(args)
    reentrant = options.get("use_reentrant")
    if isinstance(model, PeftModel) and checkpointing(args) and reentrant:
        raise ValueError(
            "use_reentrant=True gives no gradient to adapters of a frozen model: leave it out, or set it to False."
        )


def check_references(name: str, processor: VisionProcessor, target_columns: dict[str, str], dataset) -> None:
    """Warns of an evaluation whose metric will be given `None` for references."""
    columns = column_names(dataset)
    missing = [
        column for name in processor.target_columns if (column := target_columns.get(name, name)) not in columns
    ]
    if processor.makes_references and missing:
        logger.warning(
            "%s has no column %s: compute_metrics will be given None in place of references, or is not called.",
            name,
            ", ".join(f"`{column}`" for column in missing),
        )


def check_reserved_columns(dataset_name: str, columns: list[str], has_references: bool) -> None:
    """No column has the name of something else that rewards are given."""
    taken = [name for name in REWARD_ARGUMENTS if name in columns and (name != "references" or has_references)]
    if taken:
        raise ValueError(
            f"{dataset_name} has columns {taken}, but under these names rewards are given something else: rename the columns "
            "(dataset.rename_column)."
        )


def check_reward_signature(
    name: str, reward: Callable, dataset_name: str, columns: list[str], has_references: bool
) -> None:
    """A reward takes **kwargs, and what it asks for by name exists."""
    parameters = inspect.signature(reward).parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise TypeError(f"The reward `{name}` must end in **kwargs: it is given every column of the data set by name.")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if "references" in required and not has_references and "references" not in columns:
        raise ValueError(
            f"The reward `{name}` compares with `references`, but {dataset_name} lacks the target columns that the "
            "processor makes them from. Add the columns, or name them in `target_columns`."
        )
    check_columns(
        f"The reward `{name}` asks for a column that is not there: {dataset_name}",
        [*columns, *REWARD_ARGUMENTS],
        required,
    )


def check_first_row(collator: VisionCollator, rows, processor: VisionProcessor, vocab_size: int | None) -> dict:
    """One row through the processor: shape and range of what it makes, which is returned."""
    batch = collator([rows[RowKey(0, 0)]])
    if "pixel_values" not in batch and "encoder_outputs" not in batch:
        raise ValueError(f"{type(processor).__name__} made no pixel_values; it made {sorted(batch)}.")
    if collator.with_labels and not {"labels", "targets"} & set(batch):
        raise ValueError(f"{type(processor).__name__} made no labels from the targets; it made {sorted(batch)}.")
    for name in ("pixel_values", "labels"):
        if not isinstance(batch.get(name, torch.empty(0)), torch.Tensor):
            raise TypeError(
                f"{type(processor).__name__} made `{name}` as a {type(batch[name]).__name__}; it must be a tensor "
                '(return_tensors="pt").'
            )
    labels: torch.Tensor | None = batch.get("labels")
    if labels is not None and vocab_size is not None and labels.max() >= vocab_size:
        raise ValueError(
            f"Row 0 has the label {int(labels.max())}, but the decoder's vocabulary has only {vocab_size} ids."
        )
    return batch


def check_rows(
    name: str, dataset, processor: VisionProcessor, columns: dict[str, str], num_positions: int | None
) -> None:
    """What the processor says of the targets of all rows; with `num_positions`, of the lengths of their labels too."""
    try:
        processor.check_dataset(dataset, columns)
        if isinstance(processor, DenseProcessor) and CODES in column_names(dataset):
            processor.check_codes(dataset, CODES)
        if num_positions is not None:
            processor.check_label_lengths(dataset, columns, num_positions)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_images(name: str, dataset, column: str) -> None:
    """Every row of a table or a list has a picture; of a path on disk its file is there. None is opened."""
    try:
        check_values(stored_pictures(dataset, column), column, len(dataset), _check_picture)
    except ValueError as error:
        raise ValueError(
            f'{name}: {error} Leave them out, or let each give its place to the next row with on_bad_row="skip".'
        ) from error


def _check_picture(picture: Any) -> None:
    if picture is None:
        raise ValueError("there is no picture.")
    on_disk = isinstance(picture, str | PathLike) and "://" not in str(picture)  # `datasets` reads addresses as well
    if on_disk and not os.path.isfile(picture):
        raise ValueError(f"there is no file {os.fspath(picture)}.")


def check_one_view(name: str, collator: VisionCollator, rows: RowDataset) -> None:
    """Outputs of the encoder are of one view of an image, so labels must not be of others, as of a mirrored one."""
    for index in range(min(NUM_VIEWED, len(rows))):
        row = rows[RowKey(0, index)]
        columns = {column: value for column, value in row.columns.items() if column != ENCODER_OUTPUTS}
        views = collator([row._replace(columns=columns, seed=seed) for seed in range(NUM_VIEWS)])["pixel_values"]
        if not (views == views[:1]).all():
            raise ValueError(
                f"{name} has encoder_outputs, which are of each image as it is, but {type(collator.processor).__name__} shows other "
                "views of it in training: switch that off (flip=False, scale_jitter=None), or train on the images."
            )


def check_first_labels(name: str, collator: VisionCollator, rows: RowDataset) -> None:
    """The first rows' labels, decoded: warns of those that are not their references, which no completion could reach."""
    processor = collator.processor
    if isinstance(processor, DenseProcessor) or len(collator.target_columns) < len(processor.target_columns):
        return
    labelled = VisionCollator(processor, collator.image_column, collator.target_columns, with_labels=True)
    try:
        batch = labelled([rows[RowKey(0, row)] for row in range(min(NUM_READ_BACK, len(rows)))])
    except ValueError as error:
        if collator.with_labels:
            raise
        logger.warning("%s: the model cannot write a reference. %s", name, error)
        return
    references = batch["columns"].references
    if "labels" not in batch or references is None:
        return
    ids = [[i for i in label if i != -100] for label in batch["labels"].tolist()]
    shape = (len(ids), max(map(len, ids)))
    completions = processor.decode_completions(
        ids,
        per_token_logps=torch.zeros(shape),
        watched_logps=torch.zeros(*shape, len(processor.watched_ids)) if processor.watched_ids else None,
        image_sizes=batch["columns"].image_sizes,
    )
    pairs = list(zip(completions, references, strict=True))
    other = [row for row, pair in enumerate(pairs) if not processor.says_the_same(*pair)]
    if other:
        logger.warning(
            "%s: the labels of %d of the first %d rows are not decoded to their references, so that no completion can be "
            "right there. Row %d is decoded to %r, but its reference is %r.",
            name,
            len(other),
            len(pairs),
            other[0],
            *pairs[other[0]],
        )
