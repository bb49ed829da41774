"""A segmentation as the Arrow rows that evaluate's modules keep between `add_batch` and `compute`."""

import datasets
import numpy as np

from vision_rl.tasks.panoptic.segments import Segmentation


_SEGMENT = {name: datasets.Value("int64") for name in ("id", "category_id", "iscrowd")}
SEGMENTATION_FEATURES = {
    "segmentation": datasets.List(datasets.List(datasets.Value("int32"))),
    "segments_info": datasets.List(_SEGMENT),
}


def as_pair(segmentation: Segmentation | dict) -> Segmentation:
    """`(map, segments_info)`, of that or of a row."""
    if isinstance(segmentation, dict):
        return segmentation["segmentation"], segmentation["segments_info"]
    return segmentation


def as_row(segmentation: Segmentation | dict) -> dict:
    """In the form of the features, which want every key of a segment."""
    ids, segments_info = as_pair(segmentation)
    infos = [{"iscrowd": 0, **{key: info[key] for key in _SEGMENT if key in info}} for info in segments_info]
    return {"segmentation": np.asarray(ids), "segments_info": infos}
