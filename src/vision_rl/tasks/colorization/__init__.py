"""Colorization: colourfulness as reward and metric, a photo as the codes of its colours (paper, section 4.3)."""

from vision_rl.tasks.colorization.colorfulness import (
    colorfulness_terms,
    colorization_metrics,
    hasler_colorfulness,
    psnr,
)
from vision_rl.tasks.colorization.drawing import draw
from vision_rl.tasks.colorization.features import color_features
from vision_rl.tasks.colorization.grey_photos import without_grey
from vision_rl.tasks.colorization.lab import lab_to_rgb, rgb_to_lab
from vision_rl.tasks.colorization.processing import ColorizationProcessor, is_grey, rgb_to_grey
from vision_rl.tasks.colorization.rewards import ColorfulnessReward, fidelity_reward
from vision_rl.tasks.colorization.task import (
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
    "ColorfulnessReward",
    "ColorizationProcessor",
    "Options",
    "Processor",
    "check_image_ids",
    "color_features",
    "colorfulness_terms",
    "colorization_metrics",
    "draw",
    "fidelity_reward",
    "hasler_colorfulness",
    "is_grey",
    "lab_to_rgb",
    "load_data",
    "make_metric",
    "make_processor",
    "psnr",
    "rgb_to_grey",
    "rgb_to_lab",
    "save_results",
    "without_grey",
]
