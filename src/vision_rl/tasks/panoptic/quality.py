"""Panoptic quality (Kirillov et al. 2019) by the rules of panopticapi, and the matching that the reward shares with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vision_rl.arguments import naming_arguments
from vision_rl.rewards import OfProcessor
from vision_rl.tasks.panoptic.segments import (
    VOID,
    Segmentation,
    Segments,
    map_and_segments,
    places_of,
    read_segments,
    resized,
    run_bounds,
)


_PARTS = {"All": "", "Things": "_things", "Stuff": "_stuff"}


@dataclass(frozen=True)
class SegmentMatches:
    """Which segments of a prediction fit which of the reference; places are those in their `segments_info`.

    Args:
        matched: `(n, 2)`, the places of a predicted segment and of the true one that it fits: true positives.
        ious: `(n,)`, of these pairs.
        spurious: places of the predicted segments that fit none and count as false positives.
        missed: places of the true segments that nothing fits: false negatives.
        predicted_categories: of all predicted segments.
        true_categories: of all true segments.
    """

    matched: np.ndarray
    ious: np.ndarray
    spurious: np.ndarray
    missed: np.ndarray
    predicted_categories: np.ndarray
    true_categories: np.ndarray


@naming_arguments
def match_segments(prediction: Segmentation, reference: Segmentation) -> SegmentMatches:
    """Matches the segments of one image as panopticapi's `pq_compute` does.

    Areas are counted on the maps. panopticapi takes the true segments' from the JSON; in COCO's files they are equal.

    Args:
        prediction: `(map, segments_info)`; every id of the map must be in `segments_info`, and the reverse.
        reference: the same of equal size, with `iscrowd` where a segment is a crowd. Pixels of an id that is not in
            `segments_info` are neither a segment nor void, as in panopticapi.

    Raises:
        ValueError: for maps of different size, and for a prediction whose map and `segments_info` disagree.
    """
    predicted, true = read_segments(prediction), read_segments(reference)
    if predicted.map.shape != true.map.shape:
        raise ValueError(
            f"The prediction has {predicted.map.shape} pixels (height, width), but the reference has {true.map.shape}: resize "
            "one of them with vision_rl.tasks.panoptic.resized."
        )
    n, m = len(predicted.ids), len(true.ids)
    overlap = _overlap(predicted, true)  # (n + 1, m + 2): last row and column n, m are void, column m + 1 is unlisted
    areas, true_areas = overlap.sum(1)[:n], overlap.sum(0)[:m]
    if not areas.all():
        absent = predicted.ids[areas == 0]
        raise ValueError(
            f"{len(absent)} predicted segments have no pixel in the map; the first has the id {absent[0]}."
        )
    overlap, on_void = overlap[:n, :m], overlap[:n, m]

    both = (areas - on_void)[:, None] + true_areas  # union and intersection: void leaves the union
    rows, columns = np.nonzero(3 * overlap > both)  # an IoU above 0.5: exactly 0.5 is a miss, so no segment fits two
    fits = (predicted.categories[rows] == true.categories[columns]) & ~true.iscrowd[columns]
    rows, columns = rows[fits], columns[fits]
    shared = overlap[rows, columns]
    ious = shared / (both[rows, columns] - shared)

    # Of a class's crowd segments only the last one excuses a prediction: panopticapi keeps one a class.
    ignored = on_void.copy()
    for category, crowd in {true.categories[place]: place for place in np.flatnonzero(true.iscrowd)}.items():
        ignored += overlap[:, crowd] * (predicted.categories == category)
    excused = ignored / areas > 0.5
    excused[rows] = True
    found = true.iscrowd.copy()
    found[columns] = True
    return SegmentMatches(
        np.array([rows, columns]).T,
        ious,
        np.flatnonzero(~excused),
        np.flatnonzero(~found),
        predicted.categories,
        true.categories,
    )


def _overlap(predicted: Segments, true: Segments) -> np.ndarray:
    """The pixels that each predicted segment shares with each true one, with void, and with ids that nobody lists.

    One count over runs of equal pixels, of which a map has a hundredth of its pixels: no sort of the whole image.
    """
    bounds = run_bounds(predicted.map, true.map)
    starts, lengths = bounds[:-1], np.diff(bounds)
    n, m = len(predicted.ids), len(true.ids)
    rows = places_of(predicted.map.take(starts), np.concatenate([predicted.ids, [VOID]]))
    columns = places_of(true.map.take(starts), np.concatenate([true.ids, [VOID]]))
    if rows.min() < 0:
        unlisted = np.unique(predicted.map.take(starts[rows < 0]))
        raise ValueError(
            f"{len(unlisted)} ids of the predicted map are not in its segments_info; the first is {unlisted[0]}."
        )
    columns[columns < 0] = m + 1
    counts = np.bincount(rows * (m + 2) + columns, lengths, minlength=(n + 1) * (m + 2))
    return counts.reshape(n + 1, m + 2)


@naming_arguments
def panoptic_quality(
    predictions: Sequence[Segmentation], references: Sequence[Segmentation], categories: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Panoptic quality of a set of images, the numbers of panopticapi's `pq_compute`, in 0..1.

    Args:
        predictions: `(map, segments_info)` an image: a map `(H, W)` of segment ids where 0 is void, and a list of dicts
            with `id` and `category_id`.
        references: the same, of the same sizes; `iscrowd` marks crowds.
        categories: dicts with `id` and `isthing`, as in COCO's JSON.

    Returns:
        `"All"`, `"Things"` and `"Stuff"`: `pq`, `sq`, `rq`, means over the `n` categories that occur in predictions or
        references (0 where none does). `"per_class"`: the three of each category id, 0 for those that do not occur.

    Raises:
        ValueError: with the image's number, for what is not as described.
    """
    categories = _checked(categories)
    return _summary(_totals(_matches(predictions, references), categories), categories)


class PanopticQuality(OfProcessor):
    """Panoptic quality in the form that trainers call: `compute_metrics=PanopticQuality(processor.categories)`.

    A prediction of another size than its reference is brought to the reference's, as the authors evaluate: trainers'
    completions have the model's size, and references the image's. Trainers call `per_image` batch by batch and `summary` at
    the end, so that an evaluation holds matches, and not the maps of the whole set.

    Args:
        categories: dicts with `id` and `isthing`, as in COCO's JSON.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]):
        self.categories = _checked(categories)

    def for_processor(self, processor: Any) -> Self:
        """Return this metric if its categories are the processor's, or raise a `ValueError`."""
        known = getattr(processor, "categories", self.categories)
        own, fact = (
            {each["id"]: bool(each["isthing"]) for each in categories} for categories in (self.categories, known)
        )
        if own != fact:
            raise ValueError(
                f"PanopticQuality has {len(own)} categories and the processor has {len(fact)}, and they differ: use the "
                "processor's, PanopticQuality(processor.categories)."
            )
        return self

    @naming_arguments
    def __call__(self, predictions: Sequence[Segmentation], references: Sequence[Segmentation]) -> dict[str, Any]:
        """The numbers of `panoptic_quality` in a flat dict.

        Returns:
            `pq`, `sq`, `rq`; the same with `_things` and `_stuff`; `per_class_pq`, `per_class_sq` and `per_class_rq`, in the
            order of the categories, -1 for one that occurs nowhere; and of each image `per_image_iou`, the sum of the matched pairs' IoU, and
            `per_image_tp`, `per_image_fp`, `per_image_fn`, the numbers of segments.
        """
        return self.summary(self.per_image(predictions, references))

    @naming_arguments
    def per_image(
        self, predictions: Sequence[Segmentation], references: Sequence[Segmentation]
    ) -> list[SegmentMatches]:
        """The numbers of each image that `summary` needs."""
        if len(predictions) == len(references):
            predictions = [
                resized(prediction, map_and_segments(reference)[0].shape)
                for prediction, reference in zip(predictions, references, strict=True)
            ]
        return _matches(predictions, references)

    def summary(self, matches: list[SegmentMatches]) -> dict[str, Any]:
        """The numbers of `__call__`, from what `per_image` gave of all images."""
        return {
            **self.of_totals(self.totals(matches)),
            "per_image_iou": [float(image.ious.sum()) for image in matches],
            "per_image_tp": [len(image.matched) for image in matches],
            "per_image_fp": [len(image.spurious) for image in matches],
            "per_image_fn": [len(image.missed) for image in matches],
        }

    def totals(self, matches: Sequence[SegmentMatches]) -> np.ndarray:
        """The totals of which PQ is made, for each image: add up the totals of the images that you choose.

        Returns:
            `(4, C)`: of each category the sum of IoUs, the numbers of true positives, false positives, false negatives.
        """
        return _totals(matches, self.categories)

    def of_totals(self, totals: np.ndarray) -> dict[str, Any]:
        """The numbers that `__call__` returns, without the numbers of each image, from `totals` `(4, C)`."""
        result, occurs = _summary(totals, self.categories), totals[1:].any(0)
        per_class = {
            f"per_class_{key}": [result["per_class"][category["id"]][key] for category in self.categories]
            for key in ("pq", "sq", "rq")
        }
        return {
            **{f"{key}{suffix}": result[part][key] for part, suffix in _PARTS.items() for key in ("pq", "sq", "rq")},
            **{name: np.where(occurs, values, -1.0).tolist() for name, values in per_class.items()},
        }


def _checked(categories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    for category in categories:
        if not isinstance(category, Mapping) or not {"id", "isthing"} <= set(category):
            raise ValueError(f"Each of the categories needs `id` and `isthing`; this one is {category!r:.200}.")
        if category["isthing"] not in (0, 1):  # "0" would be true
            raise ValueError(
                f"`isthing` of the category {category['id']} is {category['isthing']!r}; it must be 0 or 1."
            )
    if not categories or len({category["id"] for category in categories}) < len(categories):
        raise ValueError(
            f"categories must be at least one, with different ids; the ids are {[c['id'] for c in categories]}."
        )
    return [dict(category) for category in categories]


def _matches(predictions: Sequence[Segmentation], references: Sequence[Segmentation]) -> list[SegmentMatches]:
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions and {len(references)} references: give one of each per image."
        )
    matches = []
    for image, pair in enumerate(zip(predictions, references, strict=True)):
        try:
            matches.append(match_segments(*pair))
        except ValueError as error:
            raise ValueError(f"Image {image}: {error}") from error
    return matches


def _totals(matches: Sequence[SegmentMatches], categories: list[dict[str, Any]]) -> np.ndarray:
    """Each category's sum of IoUs and numbers of true positives, false positives and false negatives, `(4, C)`."""
    ids = np.array([category["id"] for category in categories])
    totals = np.zeros((4, len(ids)))
    for image, found in enumerate(matches):
        predicted, true = places_of(found.predicted_categories, ids), places_of(found.true_categories, ids)
        for places, given in ((predicted, found.predicted_categories), (true, found.true_categories)):
            if (places < 0).any():
                unknown = np.unique(given[places < 0]).tolist()
                raise ValueError(f"Image {image}: the category ids {unknown} are not among those of categories.")
        matched = predicted[found.matched[:, 0]]
        np.add.at(totals[0], matched, found.ious)
        for row, places in enumerate((matched, predicted[found.spurious], true[found.missed]), start=1):
            np.add.at(totals[row], places, 1)
    return totals


def _summary(totals: np.ndarray, categories: list[dict[str, Any]]) -> dict[str, Any]:
    iou, tp, fp, fn = totals
    occurs = tp + fp + fn > 0
    weight = np.maximum(tp + 0.5 * fp + 0.5 * fn, 0.5)
    quality = {"pq": iou / weight, "sq": iou / np.maximum(tp, 1), "rq": tp / weight}  # (C,) each
    isthing = np.array([bool(category["isthing"]) for category in categories])
    summary: dict[str, Any] = {}
    for part, chosen in zip(_PARTS, (occurs, occurs & isthing, occurs & ~isthing), strict=True):
        n = int(chosen.sum())
        summary[part] = {key: float(values[chosen].sum() / max(n, 1)) for key, values in quality.items()} | {"n": n}
    summary["per_class"] = {
        category["id"]: {key: float(values[place]) for key, values in quality.items()}
        for place, category in enumerate(categories)
    }
    return summary
