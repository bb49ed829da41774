"""Rows to a batch: the only place that calls the processor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from vision_rl.processing import DenseProcessor, VisionProcessor, image_size, rgb_image
from vision_rl.trainer.data_order import Row


ENCODER_OUTPUTS = "encoder_outputs"  # a column with this name takes the place of the pixels
CODES = "codes"  # a column with this name takes the place of the targets that labels are made of


@dataclass
class BatchColumns:
    """What rewards and metrics read of a batch: plain Python objects that no device transfer walks through.

    Args:
        columns: every column of the data set, a list of `B` values each.
        references: `B` of them, or `None` where the data set lacks the processor's target columns.
        image_sizes: `B` pairs (width, height), before the processor.
        bad_rows: what is wrong with rows whose places others have taken.
    """

    columns: dict[str, list]
    references: list | None
    image_sizes: list[tuple[int, int]]
    bad_rows: list[str] = field(default_factory=list)


class VisionCollator:
    """Makes `pixel_values (B, C, H, W)`, `labels (B, T)` if asked for, `row_index (B,)` and `columns`.

    Rows that have `encoder_outputs (N, d)` give `encoder_outputs (B, N, d)` in place of `pixel_values`. Rows that have
    `codes` give a `DenseProcessor` these to make labels of, not the targets.

    Args:
        processor: the processor of the data protocol.
        image_column: name of the column with the image.
        target_columns: column of the data set for each of the processor's target keywords; those that the data set
            lacks are left out by the trainer.
        with_labels: whether the model learns from labels (MLE) or only rewards read the targets (tuning).
        process: what makes model inputs of images, seeds and targets; default: the processor itself.
    """

    def __init__(
        self,
        processor: VisionProcessor,
        image_column: str,
        target_columns: dict[str, str],
        with_labels: bool,
        process: Callable[..., Mapping] | None = None,
    ):
        self.processor = processor
        self.process: Callable[..., Mapping] = process or processor
        self.image_column = image_column
        self.target_columns = target_columns
        self.with_labels = with_labels

    def __call__(self, rows: list[Row]) -> dict:
        targets = self.target_columns
        may_lack = rows[0].seed is None or not self.with_labels
        if may_lack and not set(targets.values()) <= set(rows[0].columns):
            targets = {}  # images without targets, which `predict` takes, and tuning
        names = dict.fromkeys([self.image_column, *targets.values(), *rows[0].columns])
        columns = {name: [_value(row, name) for row in rows] for name in names}
        encoder_outputs = columns.pop(ENCODER_OUTPUTS, None)
        images = [rgb_image(image, row.row_index) for image, row in zip(columns[self.image_column], rows, strict=True)]
        try:
            inputs, references = self._process(rows, images, targets)
        except Exception as error:
            raise self._explained(error, rows, images, targets) from error
        if encoder_outputs is not None:
            inputs = {key: value for key, value in inputs.items() if key != "pixel_values"}
            inputs[ENCODER_OUTPUTS] = torch.stack([torch.as_tensor(value) for value in encoder_outputs])
        return {
            **inputs,
            "row_index": torch.tensor([row.row_index for row in rows]),
            "columns": BatchColumns(
                columns,
                references,
                [image_size(image) for image in images],
                [row.instead_of for row in rows if row.instead_of is not None],
            ),
        }

    def check_image(self, row: Row) -> None:
        """Raises ValueError, with row and file, for an image that cannot be read."""
        rgb_image(_value(row, self.image_column), row.row_index)

    def _process(self, rows: list[Row], images: list, targets: dict[str, str]) -> tuple[Mapping, list | None]:
        """What the processor makes of the rows: model inputs and references."""
        named = [
            {**row.columns, **{key: row.columns[name] for key, name in targets.items()}, "image": image}
            for row, image in zip(rows, images, strict=True)
        ]
        complete = len(targets) == len(self.processor.target_columns)
        process = self.process if complete else self.processor  # dense targets are made of what `predict` lacks
        keys = list(targets) if self.with_labels else []
        reads_codes = isinstance(self.processor, DenseProcessor) and self.process is self.processor
        if self.with_labels and reads_codes and CODES in named[0]:
            keys = [CODES]
        learned = {key: [row[key] for row in named] for key in keys}
        seeds = [row.seed for row in rows if row.seed is not None] or None
        inputs = process(images=images, seeds=seeds, **learned)
        has_references = self.processor.makes_references and complete
        return inputs, self.processor.get_references(named) if has_references else None

    def _explained(self, error: Exception, rows: list[Row], images: list, targets: dict[str, str]) -> ValueError:
        """The error of the first row that fails alone too, with its number; else that of the batch."""
        name = type(self.processor).__name__
        columns = ", ".join(f"`{column}`" for column in [self.image_column, *targets.values()])
        for row, image in zip(rows, images, strict=True):
            try:
                self._process([row], [image], targets)
            except Exception as alone:
                return ValueError(f"{name} cannot use row {row.row_index} (columns {columns}): {alone}")
        return ValueError(f"{name} cannot batch the rows {[row.row_index for row in rows]}: {error}")


def _value(row: Row, column: str):
    if column not in row.columns:
        raise ValueError(
            f"Row {row.row_index} has no column `{column}`; it has {', '.join(f'`{c}`' for c in row.columns)}."
        )
    return row.columns[column]
