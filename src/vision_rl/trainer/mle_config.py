"""Options of step 1, MLE pretraining."""

from dataclasses import dataclass

from vision_rl.trainer.vision_config import VisionConfig


@dataclass
class VisionMLEConfig(VisionConfig):
    """MLE pretraining has no option of its own: learning rate, schedule, batch and label smoothing are Trainer's."""
