"""Captioning: CIDEr-D as coco-caption computes it, as metric and as reward (paper, section 4.4)."""

from vision_rl.tasks.captioning.cider import cider_d, plain_cider
from vision_rl.tasks.captioning.coco_captions import bleu, coco_captions, rouge_l
from vision_rl.tasks.captioning.drawing import draw
from vision_rl.tasks.captioning.ngrams import DocumentFrequency
from vision_rl.tasks.captioning.processing import CaptioningProcessor
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize
from vision_rl.tasks.captioning.rewards import CiderReward
from vision_rl.tasks.captioning.task import (
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
    "CaptioningProcessor",
    "CiderReward",
    "DocumentFrequency",
    "Options",
    "Processor",
    "bleu",
    "check_image_ids",
    "cider_d",
    "coco_captions",
    "draw",
    "load_data",
    "make_metric",
    "make_processor",
    "plain_cider",
    "ptb_tokenize",
    "rouge_l",
    "save_results",
]
