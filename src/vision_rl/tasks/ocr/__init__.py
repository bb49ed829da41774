"""Reading text: the smallest task, and the one to copy for a new one.

The processor is the generic `TextProcessor`, with `character_tokenizer` or any other tokenizer.
"""

from vision_rl.processing import TextProcessor
from vision_rl.tasks.ocr.drawing import draw, draw_grid
from vision_rl.tasks.ocr.rewards import (
    character_accuracy_reward,
    character_error_rate,
    edit_distance,
    exact_match_reward,
)
from vision_rl.tasks.ocr.task import (
    REWARDS,
    Options,
    Processor,
    load_data,
    make_metric,
    make_processor,
    save_results,
)
from vision_rl.tasks.ocr.tokenizer import character_tokenizer


__all__ = [
    "REWARDS",
    "Options",
    "Processor",
    "TextProcessor",
    "character_accuracy_reward",
    "character_error_rate",
    "character_tokenizer",
    "draw",
    "draw_grid",
    "edit_distance",
    "exact_match_reward",
    "load_data",
    "make_metric",
    "make_processor",
    "save_results",
]
