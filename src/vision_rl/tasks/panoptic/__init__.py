"""Panoptic segmentation: panoptic quality as panopticapi computes it, as metric and as reward (paper, section 4.1)."""

from vision_rl.tasks.panoptic.coco_results import read_coco_panoptic, save_coco_panoptic
from vision_rl.tasks.panoptic.decoding import decode_logits, to_segmentation
from vision_rl.tasks.panoptic.drawing import draw
from vision_rl.tasks.panoptic.processing import PanopticProcessor
from vision_rl.tasks.panoptic.quality import PanopticQuality, match_segments, panoptic_quality
from vision_rl.tasks.panoptic.rewards import PanopticReward
from vision_rl.tasks.panoptic.segments import resized


__all__ = [
    "PanopticProcessor",
    "PanopticQuality",
    "PanopticReward",
    "decode_logits",
    "draw",
    "match_segments",
    "panoptic_quality",
    "read_coco_panoptic",
    "resized",
    "save_coco_panoptic",
    "to_segmentation",
]
