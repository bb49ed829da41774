"""COCO's average precision and recall of boxes: the twelve numbers that detection papers print, and each class.

faster-coco-eval computes; the tests hold every number to pycocotools. Boxes are xyxy in pixels of the original image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_rl.arguments import check_number, check_rows, naming_arguments


MAX_LABELS = 2**15  # COCOeval keeps 97 kB a class
_ABSENT = -1.0  # COCO's mark for a mean over nothing; unlike NaN it survives JSON


@naming_arguments
def coco_map(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    num_labels: int | None = None,
) -> dict[str, Any]:
    """The twelve numbers of COCO's box evaluation, from 0 to 1, and the same for each class.

    Boxes match as in COCOeval: a prediction takes, in order of score, the best box of its class that is still free, at
    each of the IoUs 0.5, 0.55, ... 0.95 (exactly the threshold is a match). Of an image and class, the 100
    highest scores count; of equal scores, the one that comes first. Crowd boxes cost nothing when missed, and nothing
    is wrong that lies on one. 1000 images take a second or less on one core.

    Args:
        predictions: one dict an image: `boxes (n, 4)` xyxy in pixels, `labels (n,)` from 0, `scores (n,)` on any scale.
            Arrays, lists or tensors.
        references: one dict an image: `boxes (m, 4)`, `labels (m,)`; where the data has them also `iscrowd (m,)` (0 or
            1) and `area (m,)`, the object's area in pixels, which tells small from large (without it, the box's).
        num_labels: how many classes there are: the length of the lists. Without it, one more than the largest label.

    Returns:
        `map` over the ten IoUs, `map_50`, `map_75`; `map_small`, `map_medium`, `map_large` for areas to 32², to 96² and
        above; `ar_1`, `ar_10`, `ar_100`, the recall with that many predictions an image and class; `ar_small`,
        `ar_medium`, `ar_large`; and lists in order of label: `per_class` (`map` of each class), `per_class_50`,
        `per_class_ar_100`. All are -1 where there is nothing to find, as COCO has it: a class without a box in the
        references, a size that no object has. Such classes do not count in the means.

    Raises:
        ValueError: for what is no detection, with the image; for lists of different lengths.
    """
    check_rows(predictions=predictions, references=references)
    found = [checked_prediction(value, image, num_labels) for image, value in enumerate(predictions)]
    truth = [checked_reference(value, image, num_labels) for image, value in enumerate(references)]
    if num_labels is None:
        num_labels = 1 + max((int(each["labels"].max(initial=-1)) for each in (*found, *truth)), default=-1)
    check_number("num_labels", num_labels, least=0, most=MAX_LABELS, whole=True)
    precision, recall = _evaluate(found, truth, num_labels)

    scores = {}
    # precision (10 IoUs, 101 recalls, classes, 4 sizes, 3 limits), recall (10 IoUs, classes, 4 sizes, 3 limits)
    for name, thresholds in (("map", slice(None)), ("map_50", slice(1)), ("map_75", slice(5, 6))):
        scores[name] = _mean(precision[thresholds, :, :, 0, -1])
    for size, name in enumerate(("small", "medium", "large"), start=1):
        scores[f"map_{name}"] = _mean(precision[:, :, :, size, -1])
    for limit, name in enumerate(("ar_1", "ar_10", "ar_100")):
        scores[name] = _mean(recall[:, :, 0, limit])
    for size, name in enumerate(("small", "medium", "large"), start=1):
        scores[f"ar_{name}"] = _mean(recall[:, :, size, -1])
    labels = range(num_labels)
    return {
        **scores,
        "per_class": [_mean(precision[:, :, label, 0, -1]) for label in labels],
        "per_class_50": [_mean(precision[0, :, label, 0, -1]) for label in labels],
        "per_class_ar_100": [_mean(recall[:, label, 0, -1]) for label in labels],
    }


def _evaluate(found: list[dict], truth: list[dict], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10, 101, C, 4, 3) and recall (10, C, 4, 3) as COCOeval has them."""
    if not found or num_labels == 0:
        return np.full((10, 101, num_labels, 4, 3), _ABSENT), np.full((10, num_labels, 4, 3), _ABSENT)
    from faster_coco_eval import COCO, COCOeval_faster

    evaluation = COCOeval_faster(
        COCO(_coco_json(truth, num_labels), print_function=_silence),
        COCO(_coco_json(found, num_labels), print_function=_silence),
        "bbox",
        print_function=_silence,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _silence(*_: object) -> None:
    pass


def _coco_json(images: list[dict], num_labels: int) -> dict[str, list[dict]]:
    """The JSON that the evaluator reads. Ids count from 1, since an annotation 0 would read as unmatched."""
    annotations: list[dict] = []
    for index, image in enumerate(images, start=1):
        bbox = xywh(image["boxes"])
        area = image["area"] if "area" in image else bbox[:, 2] * bbox[:, 3]
        for box, label, score, size, crowd in zip(
            bbox.tolist(),
            image["labels"].tolist(),
            image["scores"].tolist() if "scores" in image else [0.0] * len(bbox),
            area.tolist(),
            image["iscrowd"].tolist() if "iscrowd" in image else [0] * len(bbox),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": label,
                    "bbox": box,
                    "area": size,
                    "iscrowd": crowd,
                    "score": score,
                }
            )
    return {
        "images": [{"id": index} for index in range(1, len(images) + 1)],
        "categories": [{"id": label} for label in range(num_labels)],
        "annotations": annotations,
    }


def _mean(values: np.ndarray) -> float:
    present = values[values > _ABSENT]
    return float(present.mean()) if present.size else _ABSENT


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Convert `boxes (n, 4)` from xyxy to COCO's x, y, width, height.

    Sides are rounded to 1e-9 pixels, which gives a width of 32 back exactly where (x + 32) - x is 31.999999999999996:
    the limits between small, medium and large lie at round numbers.
    """
    return np.concatenate([boxes[:, :2], np.round(boxes[:, 2:] - boxes[:, :2], 9)], axis=1)


# --- what predictions and references must be ---------------------------------------------------------------------------


def checked_prediction(
    prediction: Mapping[str, Any], image: int = 0, num_labels: int | None = None
) -> dict[str, np.ndarray]:
    """Return `boxes` and `scores` as float64 and `labels` as int64 arrays, or raise a `ValueError` that names the image."""
    where = f"the prediction of image {image}"
    checked = _checked(prediction, where, num_labels)
    checked["scores"] = _one_a_box(prediction, "scores", len(checked["boxes"]), where)
    return checked


def checked_reference(
    reference: Mapping[str, Any], image: int = 0, num_labels: int | None = None
) -> dict[str, np.ndarray]:
    """Return `boxes` and `labels`, and `iscrowd` and `area` if given, or raise a `ValueError` that names the image."""
    where = f"the reference of image {image}"
    checked = _checked(reference, where, num_labels)
    if "area" in reference:
        checked["area"] = _one_a_box(reference, "area", len(checked["boxes"]), where)
    if "iscrowd" in reference:
        iscrowd = _one_a_box(reference, "iscrowd", len(checked["boxes"]), where)
        if not np.isin(iscrowd, (0, 1)).all():
            raise ValueError(f"`iscrowd` must be 0 or 1; in {where} it is {iscrowd.tolist()}.")
        checked["iscrowd"] = iscrowd.astype(np.int64)
    return checked


def _checked(detections: Mapping[str, Any], where: str, num_labels: int | None) -> dict[str, np.ndarray]:
    if not isinstance(detections, Mapping):
        raise ValueError(f"{where} must be a dict with `boxes` and `labels`; it is a {type(detections).__name__}.")
    boxes = _numbers(detections, "boxes", where)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"`boxes` must be (n, 4), x0, y0, x1, y1 in pixels; in {where} they are {boxes.shape}.")
    if not np.isfinite(boxes).all():
        row = int(np.argmin(np.isfinite(boxes).all(1)))
        raise ValueError(f"Box {row} in {where} is not finite: {boxes[row].tolist()}.")
    reversed_boxes = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if reversed_boxes.any():
        row = int(np.argmax(reversed_boxes))
        raise ValueError(
            f"Box {row} in {where} ends before it begins: {boxes[row].tolist()}. "
            "Boxes are x0, y0, x1, y1 here; add the corner to COCO's x, y, width, height."
        )
    labels = _one_a_box(detections, "labels", len(boxes), where)
    if (labels != np.floor(labels)).any() or (labels < 0).any():
        raise ValueError(f"`labels` must be whole numbers from 0; in {where} they are {labels.tolist()}.")
    if num_labels is not None and (labels >= num_labels).any():
        raise ValueError(f"A label in {where} is {int(labels.max())}, but there are {num_labels} labels, from 0.")
    return {"boxes": boxes, "labels": labels.astype(np.int64)}


def _one_a_box(detections: Mapping[str, Any], key: str, count: int, where: str) -> np.ndarray:
    values = _numbers(detections, key, where)
    if values.shape != (count,):
        raise ValueError(f"`{key}` must be ({count},), one per box; in {where} they are {values.shape}.")
    if np.isnan(values).any():
        raise ValueError(f"`{key}` in {where} has NaN at {int(np.isnan(values).argmax())}.")
    return values


def _numbers(detections: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    if key not in detections:
        raise ValueError(f"{where} has no `{key}`; it has: {', '.join(map(repr, detections)) or 'nothing'}.")
    values = detections[key]
    if not isinstance(values, list | tuple | np.ndarray):
        values = values.tolist()  # a tensor, on whatever device and of whatever type
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{key}` in {where} is not an array of numbers: {error}") from None
