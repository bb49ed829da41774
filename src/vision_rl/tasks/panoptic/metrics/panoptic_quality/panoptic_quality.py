"""Panoptic quality as an evaluate module: `evaluate.load(metric_path("panoptic_quality"), categories=categories)`."""

import datasets
import evaluate

from vision_rl.tasks.panoptic import arrow
from vision_rl.tasks.panoptic.quality import PanopticQuality


_DESCRIPTION = """
Panoptic quality: the mean IoU of matched segments times an F1 score of the matching, averaged over categories. All numbers
are those of panopticapi. Higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    categories (list of dict): of `evaluate.load`. `id` and `isthing` (0 or 1) of each category, as in COCO's JSON.
    predictions (list of dict): one an image: `segmentation`, an array or list (H, W) of segment ids where 0 is void;
        `segments_info`, a list of dicts with `id` and `category_id`. Or pairs of the two.
    references (list of dict): the same; `iscrowd` in `segments_info` marks crowds.
Returns:
    pq, sq, rq (float): panoptic, segmentation and recognition quality, from 0 to 1.
    pq_things, sq_things, rq_things, pq_stuff, sq_stuff, rq_stuff (float): over those categories alone.
    per_class_pq, per_class_sq, per_class_rq (list of float): of each category, -1 for one that occurs nowhere.
    per_image_iou (list of float): the sum of the matched segments' IoU.
    per_image_tp, per_image_fp, per_image_fn (list of int): matched, unmatched and missed segments.
Examples:
    >>> categories = [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]
    >>> quality = evaluate.load(vision_rl.metric_path("panoptic_quality"), categories=categories)
    >>> segments_info = [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}]
    >>> prediction = {"segmentation": [[7, 7, 7, 8], [8, 8, 8, 8]], "segments_info": segments_info}
    >>> reference = {"segmentation": [[7, 7, 8, 8], [8, 8, 8, 8]], "segments_info": segments_info}
    >>> result = quality.compute(predictions=[prediction], references=[reference])
    >>> round(result["pq"], 2), round(result["pq_things"], 2), round(result["pq_stuff"], 2), result["per_image_tp"]
    (0.75, 0.67, 0.83, [2])
"""

_CITATION = """
@inproceedings{kirillov2019panoptic,
    title = {Panoptic Segmentation},
    author = {Kirillov, Alexander and He, Kaiming and Girshick, Ross and Rother, Carsten and Doll{\\'a}r, Piotr},
    booktitle = {Conference on Computer Vision and Pattern Recognition},
    year = {2019}
}
"""


class PanopticQualityModule(arrow.SegmentationMetric):
    def __init__(self, *args, categories=None, **kwargs):
        super().__init__(*args, **kwargs)
        if categories is None:
            raise ValueError(
                "Say which categories there are: evaluate.load(path, categories=[{'id': 1, 'isthing': 1}, ...]), for "
                "example those of vision_rl.data.panoptic.panoptic_categories(annotation_file)."
            )
        self.quality = PanopticQuality(categories)

    def for_processor(self, processor):
        self.quality.for_processor(processor)
        return self

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(dict.fromkeys(("predictions", "references"), arrow.SEGMENTATION_FEATURES)),
        )

    def _compute(self, predictions, references):
        return self.quality(list(map(arrow.as_pair, predictions)), list(map(arrow.as_pair, references)))
