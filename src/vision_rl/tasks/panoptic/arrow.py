"""How the evaluate modules of panoptic maps keep what `add_batch` is given until `compute`."""

from typing import Any

import datasets
import numpy as np

from vision_rl.arguments import naming_arguments
from vision_rl.metric_module import MetricModule
from vision_rl.tasks.panoptic.segments import Segmentation, map_and_segments


_SEGMENT = {name: datasets.Value("int64") for name in ("id", "category_id", "iscrowd")}
SEGMENTATION_FEATURES = {
    "segmentation": {"ids": datasets.Value("large_binary"), "shape": datasets.List(datasets.Value("int64"))},
    "segments_info": datasets.List(_SEGMENT),
}


class SegmentationMetric(MetricModule):
    """A module whose predictions and references are segmentations.

    One process keeps them as arrays: evaluate would write every map to a file and read it back, which takes ten times as
    long as what is computed of them. Several processes (`num_process`) exchange Arrow files, with a map as bytes and a
    shape.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._kept: list[tuple[Segmentation, Segmentation]] = []

    def add_batch(self, *, predictions=None, references=None):
        """Keeps a batch of images for `compute`."""
        if self.num_process > 1:
            rows = {"predictions": list(map(as_row, predictions)), "references": list(map(as_row, references))}
            super().add_batch(**rows)
            return
        self._kept += [(_copy(made), _copy(true)) for made, true in _pairs(predictions, references)]

    def add(self, *, prediction=None, reference=None):
        """Keeps an image for `compute`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, Any] | None:
        """The numbers of all images that were added, and of these."""
        if self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **kwargs)
        return self._compute_kept(predictions, references, **kwargs)

    @naming_arguments
    def _compute_kept(self, predictions, references, **kwargs) -> dict[str, Any]:
        given = [] if predictions is None and references is None else _pairs(predictions, references)
        pairs, self._kept = [*self._kept, *given], []
        if not pairs:
            raise ValueError("There is nothing to compute: give predictions and references, or add some first.")
        predictions, references = (list(side) for side in zip(*pairs, strict=True))
        return self._compute(predictions=predictions, references=references, **kwargs)


def _pairs(predictions, references) -> list[tuple[Segmentation, Segmentation]]:
    if predictions is None or references is None:
        raise ValueError("Give both predictions and references.")
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions and {len(references)} references: give one of each per image."
        )
    return [(as_pair(p), as_pair(r)) for p, r in zip(predictions, references, strict=True)]


def _copy(segmentation: Segmentation) -> Segmentation:
    """Copy the map with as few bytes a pixel as suffice; the caller may use the array again."""
    ids, segments_info = map_and_segments(segmentation)
    kind = np.promote_types(np.min_scalar_type(ids.min()), np.min_scalar_type(ids.max()))
    return ids.astype(kind), list(segments_info)


def as_pair(segmentation: Segmentation | dict[str, Any]) -> Segmentation:
    """The pair `(map, segments_info)`, given such a pair, a dict with both, or an Arrow row."""
    if not isinstance(segmentation, dict):
        return segmentation
    ids = segmentation["segmentation"]
    if isinstance(ids, dict):
        ids = np.frombuffer(ids["ids"], np.int32).reshape(ids["shape"])
    return ids, segmentation["segments_info"]


def as_row(segmentation: Segmentation | dict[str, Any]) -> dict[str, Any]:
    """The row as the features want it, with every key of a segment."""
    ids, segments_info = map_and_segments(as_pair(segmentation))
    infos = [{"iscrowd": 0, **{key: info[key] for key in _SEGMENT if key in info}} for info in segments_info]
    packed = {"ids": np.ascontiguousarray(ids, np.int32).tobytes(), "shape": ids.shape}
    return {"segmentation": packed, "segments_info": infos}
