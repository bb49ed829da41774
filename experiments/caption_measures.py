"""What a captioner reaches: its answers under several decodings, their metrics, and how many forms of sentence it has left."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import VisionEncoderDecoderModel

from vision_rl.data.scene_drawing import COLOURS
from vision_rl.models.sampling import sample
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward, cider_d, coco_captions, ptb_tokenize
from vision_rl.tasks.captioning.coco_captions import UNFINISHED


BATCH = 100  # images at once
NUM_SAMPLES = 8  # of the mean reward of a sample
# How an answer is found: the most likely word each time, beams, or of 16 samples the one that the others agree with most.
DECODINGS = ("greedy", "beam 2", "beam 4", "beam 8", "mbr 16")

_PLACEHOLDERS = [
    (re.compile(r"\b(an?) "), "a "),
    (re.compile(rf"\b({'|'.join(COLOURS)}) \d\b"), "COLOUR DIGIT"),
    (re.compile(r"\b(left of|right of|above|below)\b"), "BESIDE"),
    (re.compile(r"\b(brick|grass|gravel|a photo)\b"), "GROUND"),
]


class Answers(NamedTuple):
    captions: list[str]
    ids: list[list[int]]  # with the end token, if there is one
    milliseconds: float  # of this process, an image


def sentence_form(caption: str) -> str:
    """ "a red 3 left of a blue 7" to "a COLOUR DIGIT BESIDE a COLOUR DIGIT"."""
    for pattern, placeholder in _PLACEHOLDERS:
        caption = pattern.sub(placeholder, caption)
    return caption


@torch.no_grad()
def answers(
    model: VisionEncoderDecoderModel,
    processor: CaptioningProcessor,
    pixel_values: torch.Tensor,
    decoding: str,
    reward: CiderReward,
    max_tokens: int,
) -> Answers:
    """One caption an image; the seconds are of encoding, writing and choosing."""
    name, _, count = decoding.partition(" ")
    torch.manual_seed(0)
    captions: list[str] = []
    all_ids: list[list[int]] = []
    began = time.process_time()
    for images in pixel_values.split(BATCH):
        if name == "beam":
            written = model.generate(
                pixel_values=images, num_beams=int(count), do_sample=False, max_new_tokens=max_tokens
            )
            ids = [of_image[1:] for of_image in written.tolist()]  # without the start
        else:
            how = {"num_generations": int(count or 1), "do_sample": name == "mbr", "max_completion_length": max_tokens}
            ids = sample(model, images, **how).completion_ids.flatten(0, 1).tolist()
        texts = processor.batch_decode(ids)
        if name == "mbr":
            chosen = consensus(texts, ids, int(count), reward)
            texts, ids = ([values[place] for place in chosen] for values in (texts, ids))
        captions += texts
        all_ids += ids
    return Answers(captions, all_ids, 1000 * (time.process_time() - began) / len(pixel_values))


def consensus(texts: list[str], ids: list[list[int]], count: int, reward: CiderReward) -> np.ndarray:
    """Of each image's `count` samples the place of the one with the highest mean CIDEr against all of them.

    Minimum Bayes risk decoding for the reward: the samples stand for what people might have written. A sample's score
    against itself is 10 for each, and changes no order.
    """
    ended = [reward.eos_token_id in of_sample for of_sample in ids]
    pools = [texts[start : start + count] for start in range(0, len(texts), count) for _ in range(count)]
    scores = cider_d(texts, pools, reward.document_frequency, ended)
    return np.reshape(scores, (-1, count)).argmax(1) + np.arange(0, len(texts), count)


@torch.no_grad()
def samples(
    model: VisionEncoderDecoderModel, processor: CaptioningProcessor, pixel_values: torch.Tensor, max_tokens: int
) -> tuple[list[str], list[list[int]]]:
    """`NUM_SAMPLES` captions an image, one image after the other."""
    torch.manual_seed(0)
    ids: list[list[int]] = []
    for images in pixel_values.split(BATCH):
        written = sample(model, images, NUM_SAMPLES, max_completion_length=max_tokens)
        ids += written.completion_ids.flatten(0, 1).tolist()
    return processor.batch_decode(ids), ids


def caption_columns(
    captions: list[str],
    references: list[list[str]],
    weights: np.ndarray,
    more: Mapping[str, Sequence[float]],
) -> dict[str, np.ndarray]:
    """Means over the images and over their resamples, `(1 + R,)` each; BLEU-4 is of the whole set, and has none.

    Args:
        captions, references: one of each an image.
        weights: `(1 + R, N)`, how often each image counts.
        more: other values, one an image.
    """
    words = [caption.split() for caption in ptb_tokenize(captions)]
    together = coco_captions(captions, references)
    per_image = {
        "cider": together["per_caption_cider"],
        "rouge_l": together["per_caption_rouge_l"],
        "unfinished": [bool(caption) and caption[-1] in UNFINISHED for caption in words],
        "num_words": [len(caption) for caption in words],
        **more,
    }
    columns = {name: weights @ np.array(values) / len(captions) for name, values in per_image.items()}
    return columns | {"bleu_4": np.full(len(weights), together["bleu_4"])}
