"""Panoptic segmentation: panoptic quality as panopticapi computes it, as metric and as reward (paper, section 4.1)."""

from vision_rl.tasks.panoptic.coco_results import read_coco_panoptic, save_coco_panoptic
from vision_rl.tasks.panoptic.decoding import decode_logits, to_segmentation
from vision_rl.tasks.panoptic.drawing import draw
from vision_rl.tasks.panoptic.processing import PanopticProcessor
from vision_rl.tasks.panoptic.quality import PanopticQuality, match_segments, panoptic_quality
from vision_rl.tasks.panoptic.rewards import PanopticReward
from vision_rl.tasks.panoptic.segments import resized
from vision_rl.tasks.panoptic.task import (
    REWARDS,
    Options,
    Processor,
    check_image_ids,
    load_data,
    make_metric,
    make_processor,
    save_results,
)


__all__ = [
    "REWARDS",
    "Options",
    "PanopticProcessor",
    "PanopticQuality",
    "PanopticReward",
    "Processor",
    "check_image_ids",
    "decode_logits",
    "draw",
    "load_data",
    "make_metric",
    "make_processor",
    "match_segments",
    "panoptic_quality",
    "read_coco_panoptic",
    "resized",
    "save_coco_panoptic",
    "save_results",
    "to_segmentation",
]
