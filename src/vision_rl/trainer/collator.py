"""Rows to a batch: the only place that calls the processor."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vision_rl.columns import row_value
from vision_rl.pictures import rgb_image
from vision_rl.processing import VisionProcessor, image_size
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

    def __getitem__(self, which: slice) -> "BatchColumns":
        """The columns of some of the images."""
        columns = {name: values[which] for name, values in self.columns.items()}
        return BatchColumns(columns, self.references and self.references[which], self.image_sizes[which])

    @staticmethod
    def joined(batches: list["BatchColumns"]) -> "BatchColumns":
        """The columns of several batches' images, in order. A column that one of the batches lacks is left out."""
        names = [name for name in batches[0].columns if all(name in batch.columns for batch in batches)]
        references = [batch.references for batch in batches]
        return BatchColumns(
            {name: [value for batch in batches for value in batch.columns[name]] for name in names},
            None if None in references else [value for each in references for value in each or ()],
            [size for batch in batches for size in batch.image_sizes],
        )


class VisionCollator:
    """Makes `pixel_values (B, C, H, W)`, what is learned if anything is, `row_index (B,)` and `columns`.

    Rows that have `encoder_outputs (N, d)` give `encoder_outputs (B, N, d)` in place of `pixel_values`.

    Args:
        processor: the processor of the data protocol.
        image_column: name of the column with the image.
        target_columns: column of the data set for each of the processor's target keywords; those that the data set
            lacks are left out by the trainer.
        with_labels: whether the model learns from labels (MLE) or only rewards read the targets (tuning).
        process: what makes model inputs of images, seeds and what is learned; default: the processor itself.
        learned: column for each keyword that `process` makes labels of; default: `target_columns`. Rows without them are
            images without labels.
    """

    def __init__(
        self,
        processor: VisionProcessor,
        image_column: str,
        target_columns: dict[str, str],
        with_labels: bool,
        process: Callable[..., Mapping] | None = None,
        learned: dict[str, str] | None = None,
    ):
        self.processor = processor
        self.process: Callable[..., Mapping] = process or processor
        self.image_column = image_column
        self.target_columns = target_columns
        self.with_labels = with_labels
        self.learned = (target_columns if learned is None else learned) if with_labels else {}

    def __call__(self, rows: list[Row]) -> dict:
        targets = self.target_columns
        must_have = (
            self.with_labels and rows[0].seed is not None
        )  # not in evaluation, where `predict` needs only images
        if not must_have and not set(targets.values()) <= set(rows[0].columns):
            targets = {}
        names = dict.fromkeys([self.image_column, *targets.values(), *rows[0].columns])
        columns = {name: [row_value(row.columns, name, row.row_index) for row in rows] for name in names}
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
        rgb_image(row_value(row.columns, self.image_column, row.row_index), row.row_index)

    def _process(self, rows: list[Row], images: list, targets: dict[str, str]) -> tuple[Mapping, list | None]:
        """What the processor makes of the rows: model inputs and references."""
        seeds = [row.seed for row in rows if row.seed is not None] or None
        given = {name: [row.columns[name] for row in rows] for name in self.processor.input_columns}
        if set(self.learned.values()) <= set(rows[0].columns):
            learned = {key: [row.columns[name] for row in rows] for key, name in self.learned.items()}
            inputs = self.process(images=images, seeds=seeds, **given, **learned)
        else:
            inputs = self.processor(images=images, seeds=seeds, **given)
        if not self.processor.makes_references or len(targets) < len(self.processor.target_columns):
            return inputs, None
        named = [
            {**row.columns, **{key: row.columns[name] for key, name in targets.items()}, "image": image}
            for row, image in zip(rows, images, strict=True)
        ]
        return inputs, self.processor.get_references(named)

    def _explained(self, error: Exception, rows: list[Row], images: list, targets: dict[str, str]) -> ValueError:
        """Name the first row that fails by itself in the error; if no single row fails, return the error of the whole batch."""
        name = type(self.processor).__name__
        columns = ", ".join(f"`{column}`" for column in [self.image_column, *targets.values()])
        for row, image in zip(rows, images, strict=True):
            try:
                self._process([row], [image], targets)
            except Exception as alone:
                return ValueError(f"{name} cannot use row {row.row_index} (columns {columns}): {alone}")
        return ValueError(f"{name} cannot batch the rows {[row.row_index for row in rows]}: {error}")


def target_columns_of(
    processor: VisionProcessor, named: Any, columns_of_sets: Iterable[list[str]], all_of_them: bool
) -> dict[str, str]:
    """The column for each target keyword of the processor.

    Args:
        named: those of the config, by keyword.
        columns_of_sets: the columns that each data set has.
        all_of_them: for labels; otherwise those are left out that no data set has.
    """
    named = dict(named or {})
    unknown = set(named) - set(processor.target_columns)
    if unknown:
        raise ValueError(
            f"target_columns names {sorted(unknown)}, but {type(processor).__name__} takes "
            f"{list(processor.target_columns)}."
        )
    columns = {keyword: named.get(keyword, keyword) for keyword in processor.target_columns}
    if all_of_them:
        return columns
    present = {column for columns_of_set in columns_of_sets for column in columns_of_set}
    return {keyword: column for keyword, column in columns.items() if column in present or keyword in named}


def codes_given(columns_of_sets: Iterable[list[str]]) -> bool:
    """Whether the data sets have a column `codes`, all of them or none."""
    with_codes = [CODES in columns for columns in columns_of_sets]
    if any(with_codes) and not all(with_codes):
        raise ValueError(
            f"Some data sets have a column `{CODES}` and others do not: give it to all of them or to none."
        )
    return any(with_codes)
