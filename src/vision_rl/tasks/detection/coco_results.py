"""Predictions in the JSON form that COCO's evaluation server and pycocotools' `loadRes` read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.arguments import naming_arguments
from vision_rl.data.fields import distinct_ids, ids_of
from vision_rl.data.frames import to_annotations
from vision_rl.tasks.detection.average_precision import checked_prediction, xywh


@naming_arguments
def coco_results(
    predictions: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int | str],
    frames: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One dict a box: `image_id`, `category_id`, `bbox` as x, y, width, height in pixels, `score`.

    Boxes are rounded to hundredths of a pixel, as COCO's own are, and scores to six digits, which keeps the order even
    of very small ones. Ids are written as they are given: texts stay texts.

    Args:
        predictions: one dict an image, as `coco_map` takes them: `boxes (n, 4)` xyxy, `labels (n,)`, `scores (n,)`.
        image_ids: COCO's id of each image, each once.
        category_ids: COCO's category id of each label, in order: `vision_rl.data.coco.category_ids(annotation_file)`.
        frames: the column `frame` of `load_coco_detection`'s rows: with it boxes are where the annotation file measures, which
            is elsewhere for photos that EXIF turns and for resized ones. `None`: as the pictures are shown.

    Raises:
        ValueError: for numbers of things that differ, an id twice, or what is no id.
    """
    if len(predictions) != len(image_ids):
        raise ValueError(f"There are {len(predictions)} predictions but {len(image_ids)} image_ids: give one of each.")
    if frames is not None and len(frames) != len(predictions):
        raise ValueError(f"There are {len(predictions)} predictions but {len(frames)} frames: give one of each.")
    ids, categories = distinct_ids("image_ids", image_ids), ids_of("category_ids", category_ids)
    results = []
    for image, (prediction, image_id) in enumerate(zip(predictions, ids, strict=True)):
        found = checked_prediction(prediction, image, num_labels=len(categories))
        boxes = found["boxes"] if frames is None else to_annotations(found["boxes"], frames[image])
        for bbox, label, score in zip(xywh(boxes), found["labels"], found["scores"], strict=True):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": categories[label],
                    "bbox": [round(float(side), 2) for side in bbox],
                    "score": float(f"{score:.6g}"),
                }
            )
    return results


def save_coco_results(
    predictions: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int | str],
    path: str | Path,
    frames: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes `coco_results` of the predictions to a JSON file."""
    Path(path).write_text(json.dumps(coco_results(predictions, image_ids, category_ids, frames)))
