"""Rows to a batch: the only place that calls the processor."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from vision_rl.processing import VisionProcessor
from vision_rl.trainer.data_order import Row


@dataclass
class BatchColumns:
    """What rewards and metrics read of a batch: plain Python objects that no device transfer walks through.

    Args:
        columns: every column of the data set, a list of `B` values each.
        references: `B` of them, or `None` where the data set lacks the processor's target columns.
    """

    columns: dict[str, list]
    references: list | None


class VisionCollator:
    """Makes `pixel_values (B, C, H, W)`, `labels (B, T)` if asked for, `row_index (B,)` and `columns`.

    Args:
        processor: the processor of the data protocol.
        image_column: name of the column with the image.
        target_columns: column of the data set for each of the processor's target keywords; those that the data set
            lacks are left out by the trainer.
        with_labels: whether the model learns from labels (MLE) or only rewards read the targets (tuning).
    """

    def __init__(
        self, processor: VisionProcessor, image_column: str, target_columns: dict[str, str], with_labels: bool
    ):
        self.processor = processor
        self.image_column = image_column
        self.target_columns = target_columns
        self.with_labels = with_labels

    def __call__(self, rows: list[Row]) -> dict:
        images = [rgb_image(row.columns[self.image_column], row.row_index) for row in rows]
        named = [{**r.columns, **{key: r.columns[name] for key, name in self.target_columns.items()}} for r in rows]
        targets = {key: [row[key] for row in named] for key in self.target_columns} if self.with_labels else {}
        seeds = [row.seed for row in rows if row.seed is not None] or None
        has_references = len(self.target_columns) == len(self.processor.target_columns) > 0
        return {
            **self.processor(images=images, seeds=seeds, **targets),
            "row_index": torch.tensor([row.row_index for row in rows]),
            "columns": BatchColumns(
                columns={name: [row.columns[name] for row in rows] for name in rows[0].columns},
                references=self.processor.get_references(named) if has_references else None,
            ),
        }


def rgb_image(image, row: int) -> Image.Image:
    """Any picture as 8-bit RGB: grey, 16-bit, CMYK, alpha (over white) and palette ones are converted.

    Takes a PIL image, a path, or an array `(H, W)` or `(H, W, C)`. Raises `ValueError` with the row, and the file
    where there is one, when it cannot be decoded.
    """
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    try:
        if isinstance(image, str | os.PathLike):
            image = Image.open(image)
        elif isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            raise TypeError(f"a {type(image).__name__} is no image (expected a PIL image, a path or an array)")
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"The image of row {row}{f' ({path})' if path else ''} cannot be read: {error}") from error
