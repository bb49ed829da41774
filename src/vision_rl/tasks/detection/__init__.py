"""Object detection: boxes as tokens, recall and mAP as rewards, learned confidences (paper, section 4.2)."""

from vision_rl.tasks.detection.processing import DetectionProcessor
from vision_rl.tasks.detection.rewards import (
    AveragePrecisionReward,
    RecallReward,
    class_weights,
    detection_reward,
)


__all__ = [
    "AveragePrecisionReward",
    "DetectionProcessor",
    "RecallReward",
    "class_weights",
    "detection_reward",
]
