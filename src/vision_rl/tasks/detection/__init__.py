"""Object detection: boxes as tokens, recall and mAP as rewards, learned confidences (paper, section 4.2)."""

from vision_rl.tasks.detection.average_precision import coco_map
from vision_rl.tasks.detection.coco_results import coco_results, save_coco_results
from vision_rl.tasks.detection.drawing import draw
from vision_rl.tasks.detection.processing import DetectionProcessor
from vision_rl.tasks.detection.rewards import (
    AveragePrecisionReward,
    RecallReward,
    class_weights,
    detection_reward,
)
from vision_rl.tasks.detection.task import (
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
    "AveragePrecisionReward",
    "DetectionProcessor",
    "Options",
    "Processor",
    "RecallReward",
    "check_image_ids",
    "class_weights",
    "coco_map",
    "coco_results",
    "detection_reward",
    "draw",
    "load_data",
    "make_metric",
    "make_processor",
    "save_coco_results",
    "save_results",
]
