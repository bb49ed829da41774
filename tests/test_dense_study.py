"""In the experiments with codes, PQ of resampled images is that of `PanopticQuality`."""

import numpy as np
import pytest

from vision_rl.tasks.panoptic import PanopticQuality


def test_pq_of_resampled_images_is_pq_of_these_images(experiment):
    class Processor:
        categories = ({"id": 3, "isthing": 1}, {"id": 5, "isthing": 0}, {"id": 9, "isthing": 1})

    rng = np.random.default_rng(0)

    def segmentation():
        ids = np.repeat(rng.integers(0, 4, (1, 8)), 8, axis=0)
        return ids, [
            {"id": int(one), "category_id": int(rng.choice([3, 5])), "iscrowd": 0} for one in np.unique(ids) if one
        ]

    references = [segmentation() for _ in range(6)]
    references[2][1][0]["category_id"] = 9  # a category that only this image has, which the resample lacks
    predictions = [reference if image % 2 else segmentation() for image, reference in enumerate(references)]
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 1, 0, 1, 1, 1]])
    columns = experiment("dense_study").panoptic_columns(predictions, references, weights, Processor)
    for row, chosen in enumerate(([0, 1, 2, 3, 4, 5], [0, 0, 1, 3, 4, 5])):
        metrics = PanopticQuality(Processor.categories)(
            [predictions[image] for image in chosen], [references[image] for image in chosen]
        )
        for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"):
            assert columns[name][row] == pytest.approx(metrics[name])
