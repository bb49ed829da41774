"""What a captioner reaches: its answers under several decodings, their metrics, and how varied its sentences are."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from vision_rl.data.scene_drawing import COLOURS
from vision_rl.models.sampling import sample
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward, DocumentFrequency, coco_captions, ptb_tokenize
from vision_rl.tasks.captioning.coco_captions import UNFINISHED


BATCH = 100  # images at once
NUM_SAMPLES = 8  # samples an image whose mean reward is reported
# How an answer is found: the most likely word each time; by beam search; or, out of 16 samples, the one that the others
# agree with most. They agree by CIDEr, with the end of a sentence as a word (the reward) or without it (the metric).
DECODINGS = ("greedy", "beam 2", "beam 4", "beam 8", "mbr 16 with end", "mbr 16 without end")

_PLACEHOLDERS = [
    (re.compile(r"\b(an?) "), "a "),
    (re.compile(rf"\b({'|'.join(COLOURS)}) \d\b"), "COLOUR DIGIT"),
    (re.compile(r"\b(left of|right of|above|below)\b"), "BESIDE"),
    (re.compile(r"\b(brick|grass|gravel|a photo)\b"), "GROUND"),
]


class Answers(NamedTuple):
    captions: list[str]
    ids: list[list[int]]  # with the end token, if there is one
    milliseconds: float  # of this process, for each image: encoding (unless it is done already), writing and choosing


def sentence_form(caption: str) -> str:
    """Turns "a red 3 left of a blue 7" into "a COLOUR DIGIT BESIDE a COLOUR DIGIT"."""
    for pattern, placeholder in _PLACEHOLDERS:
        caption = pattern.sub(placeholder, caption)
    return caption


def num_forms(captions: Sequence[str]) -> int:
    return len(set(map(sentence_form, captions)))


def effective_forms(captions: Sequence[str]) -> float:
    """The exponential of the entropy of the forms: so many equally frequent forms have the same entropy."""
    counts = np.array(list(Counter(map(sentence_form, captions)).values()))
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cider_rewards(processor: CaptioningProcessor, captions: Sequence[Sequence[str]]) -> dict[str, CiderReward]:
    """CIDEr-D twice: with the end of a sentence counted as a word, for tuning, and without it, for reporting.

    The n-grams of `captions`, a list for each image, say which words are rare.
    """
    end = processor.tokenizer.eos_token_id
    return {
        name: CiderReward(DocumentFrequency.from_references(captions, append_eos), append_eos, end)
        for name, append_eos in (("with end", True), ("without end", False))
    }


@torch.no_grad()
def answers(
    model: VisionEncoderDecoderModel,
    processor: CaptioningProcessor,
    images: torch.Tensor,
    decoding: str,
    rewards: Mapping[str, CiderReward],
    max_tokens: int,
) -> Answers:
    """One caption for each image, by one of `DECODINGS`.

    Args:
        images: their pixels `(B, 3, H, W)`, or the output of a frozen encoder `(B, N, d)`.
        rewards: under the names that `DECODINGS` uses.
    """
    name, count, by = (*decoding.split(maxsplit=2), "1", "")[:3]
    torch.manual_seed(0)
    captions: list[str] = []
    all_ids: list[list[int]] = []
    began = time.process_time()
    for batch in images.split(BATCH):
        if name == "beam":
            encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=batch.clone())}  # which generate changes
            given = {"pixel_values": batch} if batch.ndim == 4 else encoded
            written = model.generate(**given, num_beams=int(count), do_sample=False, max_new_tokens=max_tokens)
            ids = [of_image[1:] for of_image in written.tolist()]  # without the start token
        else:
            ids = written_ids(model, batch, int(count), max_tokens, do_sample=name == "mbr")
        texts = processor.batch_decode(ids)
        if name == "mbr":
            chosen = consensus(texts, ids, int(count), rewards[by])
            texts, ids = ([values[place] for place in chosen] for values in (texts, ids))
        captions += texts
        all_ids += ids
    return Answers(captions, all_ids, 1000 * (time.process_time() - began) / len(images))


def consensus(texts: list[str], ids: list[list[int]], count: int, reward: CiderReward) -> np.ndarray:
    """For each image, the index of the sample (of `count`) that has the highest mean CIDEr against all of the samples.

    This is minimum Bayes risk decoding for the reward: the samples stand for what people might have written. Each sample
    is also scored against itself; that score is the same for all of them and does not change their order.
    """
    pools = [texts[start : start + count] for start in range(0, len(texts), count) for _ in range(count)]
    scores = reward(texts, pools, ids)
    return np.reshape(scores, (-1, count)).argmax(1) + np.arange(0, len(texts), count)


@torch.no_grad()
def samples(
    model: VisionEncoderDecoderModel, processor: CaptioningProcessor, images: torch.Tensor, max_tokens: int
) -> tuple[list[str], list[list[int]]]:
    """`NUM_SAMPLES` captions for each image; those of one image stand together. `images` are those of `answers`."""
    torch.manual_seed(0)
    ids = [row for batch in images.split(BATCH) for row in written_ids(model, batch, NUM_SAMPLES, max_tokens)]
    return processor.batch_decode(ids), ids


def written_ids(
    model: VisionEncoderDecoderModel, images: torch.Tensor, count: int, max_tokens: int, do_sample: bool = True
) -> list[list[int]]:
    """The ids of `count` captions an image."""
    given = {"pixel_values": images} if images.ndim == 4 else {"encoder_outputs": images}
    how = {"num_generations": count, "do_sample": do_sample, "max_completion_length": max_tokens}
    return sample(model, **given, **how).completion_ids.flatten(0, 1).tolist()


def caption_columns(
    captions: list[str],
    references: list[list[str]],
    weights: np.ndarray,
    more: Mapping[str, Sequence[float]],
) -> dict[str, np.ndarray]:
    """Means over the images and over their resamples, `(1 + R,)` each. BLEU-4 is that of the whole set throughout.

    Args:
        captions, references: one entry for each image.
        weights: `(1 + R, N)`, how often each image counts.
        more: further values, one for each image.
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
