"""Predictions in the JSON form that COCO's evaluation server and pycocotools' `loadRes` read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.tasks.detection.average_precision import checked_prediction, xywh


def coco_results(
    predictions: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """One dict a box: `image_id`, `category_id`, `bbox` as x, y, width, height in pixels, `score`.

    Boxes are rounded to hundredths of a pixel, as COCO's own are, and scores to six digits, which keeps the order even
    of very small ones.

    Args:
        predictions: one dict an image, as `coco_map` takes them: `boxes (n, 4)` xyxy, `labels (n,)`, `scores (n,)`.
        image_ids: COCO's id of each image, each once.
        category_ids: COCO's category id of each label, in order: `vision_rl.data.coco.category_ids(annotation_file)`.
    """
    if len(predictions) != len(image_ids):
        raise ValueError(f"There are {len(predictions)} predictions but {len(image_ids)} image_ids: give one of each.")
    if len(set(image_ids)) != len(image_ids):
        raise ValueError("image_ids has an id more than once: COCO wants all boxes of an image together.")
    results = []
    for image, (prediction, image_id) in enumerate(zip(predictions, image_ids, strict=True)):
        found = checked_prediction(prediction, image, num_labels=len(category_ids))
        for bbox, label, score in zip(xywh(found["boxes"]), found["labels"], found["scores"], strict=True):
            results.append(
                {
                    "image_id": int(image_id),
                    "category_id": int(category_ids[label]),
                    "bbox": [round(float(side), 2) for side in bbox],
                    "score": float(f"{score:.6g}"),
                }
            )
    return results


def save_coco_results(
    path: str | Path, predictions: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> None:
    """Writes `coco_results` of the predictions to a JSON file."""
    Path(path).write_text(json.dumps(coco_results(predictions, image_ids, category_ids)))
