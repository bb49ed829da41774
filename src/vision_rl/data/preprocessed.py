"""Decode and resize the images of a data set once, and keep them at the model's size on disk as Arrow."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from vision_rl.pictures import rgb_image
from vision_rl.processing import ORIGINAL_SIZE, DenseProcessor, VisionProcessor


NUM_CHECKED_ROWS = 8


def preprocessed(
    dataset: datasets.Dataset,
    processor: VisionProcessor,
    image_column: str = "image",
    target_columns: Mapping[str, str] | None = None,
    **map_options: Any,
) -> datasets.Dataset:
    """Return `dataset` with its images resized by the processor's `image_processor`; other columns do not change.

    This speeds up training that waits for its images, if more workers (`dataloader_num_workers`) do not help or there
    are no cores for them. The stored images are 8-bit pixels before normalisation, without compression (0.15 MB an
    image at 224 pixels, 0.75 MB at 512). The processor then resizes nothing, and its `pixel_values`, labels and
    references stay the same, bit for bit. This is checked on some rows, with seeds. A processor whose results differ
    on the smaller image is refused, such as a processor that cuts out parts at random, or that measures in the photo's
    pixels. If the data set lies on disk, `datasets` keeps the stored file and finds it again. Rewards that read the
    image column see the smaller image.

    Args:
        dataset: rows with an image; without a transform or format.
        processor: a processor with an `image_processor`. A `DenseProcessor` is refused, because its stage I mirrors
            and cuts the photos themselves.
        image_column: name of the column with the image.
        target_columns: the column for each target keyword of the processor, as in the trainers' config.
        map_options: options of `datasets.Dataset.map`, such as `num_proc`, and `cache_file_name` for a data set in
            memory.

    Raises:
        TypeError: for a data set that is no `datasets.Dataset`.
        ValueError: for a processor whose results would differ, with the row; for a `DenseProcessor`; and for a data
            set with a transform or format.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"The data set is a {type(dataset).__name__}; it must be a datasets.Dataset to be stored.")
    if dataset.format["type"] is not None:
        raise ValueError(
            "The data set has a transform, which may be random, or a tensor format: preprocess it first, without these."
        )
    if isinstance(processor, DenseProcessor):
        raise ValueError(
            f"{type(processor).__name__} also mirrors and cuts photos before it resizes them, so they cannot be resized "
            "beforehand: give the trainer the data set itself, and workers (dataloader_num_workers)."
        )
    features = datasets.Features({**dataset.features, image_column: _STORED})
    stored = dataset.map(
        _resized_pixels,
        fn_kwargs={"image_processor": processor.image_processor, "image_column": image_column},
        input_columns=[image_column],
        with_indices=True,
        batched=True,
        **{"batch_size": 32, "desc": "Resizing images", "features": features, **map_options},
    ).with_transform(_Pictures(image_column))
    _check_same(dataset, stored, processor, image_column, dict(target_columns or {}))
    return stored


_STORED = {
    "pixels": datasets.Value("binary"),  # (height, width, 3)
    "size": [datasets.Value("int32")],  # width and height of the stored image, then of the photo
}


def _resized_pixels(images: list, indices: list[int], image_processor, image_column: str) -> dict[str, list]:
    pictures = [rgb_image(image, row) for image, row in zip(images, indices, strict=True)]
    resized = image_processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    pixels = resized.movedim(1, -1).to(torch.uint8).numpy()  # (B, H, W, 3)
    return {
        image_column: [
            {"pixels": array.tobytes(), "size": [array.shape[1], array.shape[0], *picture.size]}
            for array, picture in zip(pixels, pictures, strict=True)
        ]
    }


class _Pictures:
    """The transform of the stored data set, which turns the image column into pictures again."""

    def __init__(self, image_column: str):
        self.image_column = image_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if self.image_column not in batch:  # the user has selected other columns
            return batch
        return {**batch, self.image_column: [_picture(**image) for image in batch[self.image_column]]}


def _picture(pixels: bytes, size: Sequence[int]) -> Image.Image:
    width, height, *original = size
    picture = Image.frombytes("RGB", (width, height), pixels)
    picture.info[ORIGINAL_SIZE] = tuple(original)
    return picture


def _check_same(dataset, stored, processor: VisionProcessor, image_column: str, named: dict[str, str]) -> None:
    """Raise `ValueError` if the processor's results for a stored row differ from its results for the row itself."""
    columns = {keyword: named.get(keyword, keyword) for keyword in processor.target_columns}
    columns = {keyword: name for keyword, name in columns.items() if name in dataset.column_names}
    for row in range(0, len(dataset), max(1, -(-len(dataset) // NUM_CHECKED_ROWS))):
        expected, made = (_made_of(rows[row], row, processor, image_column, columns) for rows in (dataset, stored))
        for name in expected:
            if not _equal(expected[name], made[name]):
                raise ValueError(
                    f"{type(processor).__name__} makes a different `{name}` of row {row} when its image already has the "
                    "model's size, so this data set cannot be preprocessed for it: give the trainer the data set itself, "
                    "and workers (dataloader_num_workers)."
                )


def _made_of(row: dict, index: int, processor: VisionProcessor, image_column: str, columns: dict[str, str]) -> dict:
    """Return the processor's results for a row: the inputs of evaluation and of two seeds, and the reference."""
    image, targets = rgb_image(row[image_column], index), {key: [row[name]] for key, name in columns.items()}
    made: dict[str, Any] = {}
    for seeds in (None, [0], [1]):
        inputs = processor(images=[image], seeds=seeds, **targets)
        made |= {f"{name}{'' if seeds is None else f' with seed {seeds[0]}'}": value for name, value in inputs.items()}
    if processor.makes_references and len(columns) == len(processor.target_columns):
        named = {**row, **{key: row[name] for key, name in columns.items()}, "image": image}
        made["references"] = processor.get_references([named])
    return made


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal: tensors, arrays, pictures, and dicts and lists of such values."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, torch.Tensor | np.ndarray | Image.Image):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return bool(a == b)
