"""COCO's box evaluation as an evaluate module: `evaluate.load(vision_rl.metric_path("coco_map"))`."""

import datasets
import evaluate
from datasets import Sequence, Value

from vision_rl import metric_module
from vision_rl.tasks.detection.average_precision import coco_map


_DESCRIPTION = """
The twelve numbers of COCO's box evaluation: average precision over the IoUs 0.5 to 0.95, at 0.5 and at 0.75, for small,
medium and large objects, and average recall with 1, 10 and 100 boxes an image and class, and for the three sizes;
besides, the precision of each class. All are those of pycocotools. Higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of dict): one an image: `boxes`, a list of [x0, y0, x1, y1] in pixels; `labels` from 0; `scores`.
    references (list of dict): one an image: `boxes` and `labels`; optionally `iscrowd` (0 or 1) and `area` in pixels.
    num_labels (int): how many classes there are. Without it, one more than the largest label.
Returns:
    map, map_50, map_75, map_small, map_medium, map_large (float): average precision, from 0 to 1.
    ar_1, ar_10, ar_100, ar_small, ar_medium, ar_large (float): average recall, from 0 to 1.
    per_class, per_class_50, per_class_ar_100 (list of float): map, map_50 and ar_100 of each class.
    All are -1 where the references have nothing to find.
Examples:
    >>> coco_map = evaluate.load(vision_rl.metric_path("coco_map"))
    >>> prediction = {"boxes": [[0, 0, 10, 10], [50, 50, 60, 60]], "labels": [0, 0], "scores": [0.9, 0.4]}
    >>> reference = {"boxes": [[0, 0, 10, 9], [20, 20, 30, 30]], "labels": [0, 0]}
    >>> result = coco_map.compute(predictions=[prediction], references=[reference])
    >>> round(result["map"], 3), round(result["map_50"], 3), result["ar_100"], result["map_large"]
    (0.454, 0.505, 0.45, -1.0)
"""

_CITATION = """
@inproceedings{lin2014microsoft,
    title = {Microsoft {COCO}: Common objects in context},
    author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva
              and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
    booktitle = {European Conference on Computer Vision},
    year = {2014}
}
"""


_BOXES, _NUMBERS, _LABELS = Sequence(Sequence(Value("float64"))), Sequence(Value("float64")), Sequence(Value("int64"))
_FEATURES = {
    "predictions": {"boxes": _BOXES, "labels": _LABELS, "scores": _NUMBERS},
    "references": {"boxes": _BOXES, "labels": _LABELS, "iscrowd": _LABELS, "area": _NUMBERS},
}


class COCOMap(metric_module.MetricModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(_FEATURES),
        )

    # evaluate wants every key of the features; None stands for one that is not given, and is taken out again

    def add_batch(self, *, predictions=None, references=None):
        """Keeps a batch of images for `compute`."""
        predictions = [_with_all_keys(prediction, "predictions") for prediction in predictions]
        references = [_with_all_keys(reference, "references") for reference in references]
        super().add_batch(predictions=predictions, references=references)

    def add(self, *, prediction=None, reference=None):
        """Keeps an image for `compute`."""
        prediction = _with_all_keys(prediction, "predictions")
        super().add(prediction=prediction, reference=_with_all_keys(reference, "references"))

    def _compute(self, predictions, references, num_labels=None):
        return coco_map([_given(row) for row in predictions], [_given(row) for row in references], num_labels)


def _with_all_keys(row, side):
    return {key: row.get(key) for key in _FEATURES[side]}


def _given(row):
    return {key: value for key, value in row.items() if value is not None}
