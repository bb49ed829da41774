"""Panoptic maps in COCO's form, a PNG an image and one JSON, as its evaluation server and panopticapi read them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vision_rl.data.coco import read_json
from vision_rl.tasks.panoptic.segments import (
    Segmentation,
    ids_from_rgb,
    read_segments,
    resized,
    rgb_from_ids,
    unlisted_ids,
)


def save_coco_panoptic(
    predictions: Sequence[Segmentation],
    image_ids: Sequence[int | str],
    masks_dir: str | Path,
    annotation_file: str | Path,
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Writes `<masks_dir>/<image id>.png` for each image, numbers in twelve digits as COCO has them, and the JSON.

    Args:
        predictions: `(map, segments_info)` an image, at the image's own size; or of any size, given `image_sizes`. Those of
            a trainer's `predict` have the model's.
        image_ids: COCO's id of each image, each once.
        masks_dir: folder of the PNGs; made where it is not there. For the server it must be named as the JSON.
        annotation_file: the JSON, with `annotations`: `image_id`, `file_name`, and `segments_info` with `id` and
            `category_id`.
        image_sizes: (width, height) of each image, to which its map is brought (`resized`).

    Raises:
        ValueError: for a map with an id that its `segments_info` lacks, and for numbers of things that differ.
    """
    if image_sizes is not None:
        if len(image_sizes) != len(predictions):
            raise ValueError(
                f"There are {len(predictions)} predictions but {len(image_sizes)} image_sizes: give one each."
            )
        pairs = zip(predictions, image_sizes, strict=True)
        predictions = [resized(prediction, (height, width)) for prediction, (width, height) in pairs]
    if len(predictions) != len(image_ids):
        raise ValueError(f"There are {len(predictions)} predictions but {len(image_ids)} image_ids: give one of each.")
    if len(set(image_ids)) != len(image_ids):
        raise ValueError("image_ids has an id more than once: COCO wants one map an image.")
    folder = Path(masks_dir)
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for prediction, image_id in zip(predictions, image_ids, strict=True):
        segments = read_segments(prediction)
        unlisted = unlisted_ids(segments)
        if len(unlisted):
            raise ValueError(
                f"Image {image_id!r}: {len(unlisted)} ids of the map are not in its segments_info, the first {unlisted[0]}."
            )
        name = f"{image_id}.png" if isinstance(image_id, str) else f"{image_id:012d}.png"
        Image.fromarray(rgb_from_ids(segments.map)).save(folder / name)
        pairs = zip(segments.ids.tolist(), segments.categories.tolist(), strict=True)
        infos = [{"id": segment_id, "category_id": category} for segment_id, category in pairs]
        known_id = image_id if isinstance(image_id, str) else int(image_id)
        annotations.append({"image_id": known_id, "file_name": name, "segments_info": infos})
    Path(annotation_file).write_text(json.dumps({"annotations": annotations}))


def read_coco_panoptic(
    masks_dir: str | Path, annotation_file: str | Path
) -> tuple[list[Segmentation], list[int | str]]:
    """The predictions and image ids that a folder of PNGs and a JSON hold, those of `save_coco_panoptic` or others'."""
    annotations = read_json(annotation_file, ("annotations",), "panoptic maps")["annotations"]
    predictions = []
    for annotation in annotations:
        with Image.open(Path(masks_dir) / annotation["file_name"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        predictions.append((ids_from_rgb(pixels), annotation["segments_info"]))
    return predictions, [annotation["image_id"] for annotation in annotations]
