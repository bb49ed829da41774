"""Every public function says what is wrong with broken input and in which argument. No output is silently wrong."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fuzzing import attack
from PIL import Image
from tiny import image_processor, text_processor
from transformers import ViTImageProcessorPil

from vision_rl.processing import completion_text
from vision_rl.rewards import RewardOutput, TokenTargets
from vision_rl.tasks import captioning, colorization, detection, ocr, panoptic
from vision_rl.tasks.captioning.coco_captions import bleu, coco_captions, rouge_l
from vision_rl.tasks.captioning.ngrams import DocumentFrequency
from vision_rl.tasks.detection.rewards import class_weights, confidence_targets, detection_reward
from vision_rl.trainer.reward_outputs import checked_output


RNG = np.random.default_rng(0)


class Entry(NamedTuple):
    """A public callable, good arguments, and a check that every output must pass."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    check: Callable[[Any, dict], bool] = lambda output, given: True
    says: list[str] = []


def finite(values: Any) -> bool:
    """Whether there is no NaN anywhere in it."""
    if isinstance(values, dict):
        return all(map(finite, values.values()))
    if isinstance(values, np.ndarray | torch.Tensor):
        values = np.asarray(values)
        return values.dtype == object or not np.isnan(values).any()
    if isinstance(values, list | tuple):
        return all(map(finite, values))
    return not (isinstance(values, float | np.floating) and math.isnan(values))


def one_each(*names: str) -> Callable[[Any, dict], bool]:
    """Whether there are as many outputs as entries in these arguments, and none is NaN."""
    return lambda output, given: (
        finite(output) and all(given.get(name) is None or len(given[name]) == len(output) for name in names)
    )


def rows_each(output: Any, given: dict) -> bool:
    return len(output) == len(given["rows"])


def numbers(output: Any, given: dict) -> bool:
    return finite(output)


# --- reading text and captions ------------------------------------------------------------------------------------------

IMAGE = Image.fromarray(RNG.integers(0, 255, (24, 32, 3), dtype=np.uint8))
IDS = [[2, 3, 4, 1], [5, 1], []]
TEXT = text_processor()
CAPTION = captioning.CaptioningProcessor(image_processor(), ocr.character_tokenizer("abcd "))
CAPTIONS = ["a dog runs", "two cats sleep", ""]
TRUE_CAPTIONS = [["a dog runs on grass", "a black dog"], ["two cats"], ["a bird"]]
FREQUENCY = DocumentFrequency.from_references(TRUE_CAPTIONS, append_eos=True)
LOGPS = torch.full((3, 12), -0.5)
SIZES = [(32, 24)] * 3


def words_of(processor: Any) -> dict[str, Entry]:
    decoded = {"per_token_logps": LOGPS, "watched_logps": None, "image_sizes": SIZES}
    rows = [{"text": "ab", "captions": ["ab", "cd"], "image": IMAGE}] * 2
    column = processor.target_columns[0]
    return {
        "batch_decode": Entry(processor.batch_decode, {"sequences": IDS}, one_each("sequences")),
        "decode": Entry(processor.decode, {"ids": IDS[0]}, lambda output, given: isinstance(output, str)),
        "decode_completions": Entry(
            processor.decode_completions, {"sequences": IDS, **decoded}, one_each("sequences")
        ),
        "call": Entry(
            processor, {"images": [IMAGE] * 2, column: [row[column] for row in rows]}, says=["image", "text"]
        ),
        "get_references": Entry(processor.get_references, {"rows": rows}, rows_each, [column]),
    }


DF = {"hashes": FREQUENCY.hashes, "counts": FREQUENCY.counts, "num_images": 3}
SCORED = {"candidates": CAPTIONS, "references": TRUE_CAPTIONS}
TEXTS = {"completions": ["ab", "c"], "references": ["abc", "c"]}
ENTRIES: dict[str, Entry] = {
    **{f"text.{name}": entry for name, entry in words_of(TEXT).items()},
    **{f"captioning.{name}": entry for name, entry in words_of(CAPTION).items()},
    "ocr.exact_match_reward": Entry(ocr.exact_match_reward, TEXTS, one_each("completions", "references")),
    "ocr.character_accuracy_reward": Entry(
        ocr.character_accuracy_reward, TEXTS, one_each("completions", "references")
    ),
    "ocr.character_error_rate": Entry(
        lambda completions, references: ocr.character_error_rate(completions, references),
        TEXTS,
        numbers,
        ["predictions"],
    ),
    "ocr.draw": Entry(
        ocr.draw, {"image": IMAGE, "completion": {"a": ["ab"], "b": "c"}, "reference": "ab", "width": 64}
    ),
    "ocr.character_tokenizer": Entry(ocr.character_tokenizer, {"alphabet": "abc"}),
    "captioning.cider_d": Entry(
        captioning.cider_d,
        {**SCORED, "document_frequency": FREQUENCY, "append_eos": [True, False, True]},
        one_each("candidates", "references"),
        ["captions"],
    ),
    "captioning.plain_cider": Entry(captioning.plain_cider, SCORED, one_each(*SCORED), ["captions"]),
    "captioning.CiderReward": Entry(
        captioning.CiderReward(FREQUENCY, eos_token_id=1),
        {"completions": CAPTIONS, "references": TRUE_CAPTIONS, "completion_ids": IDS},
        one_each("completions", "references", "completion_ids"),
        ["captions"],
    ),
    "captioning.coco_captions": Entry(
        lambda predictions, references: coco_captions(predictions, references),
        {"predictions": CAPTIONS, "references": TRUE_CAPTIONS},
        numbers,
        ["captions"],
    ),
    "captioning.bleu": Entry(bleu, SCORED, numbers, ["captions"]),
    "captioning.rouge_l": Entry(rouge_l, SCORED, one_each(*SCORED), ["captions"]),
    "captioning.DocumentFrequency": Entry(
        lambda hashes, counts, num_images: captioning.cider_d(
            CAPTIONS, TRUE_CAPTIONS, DocumentFrequency(hashes, counts, num_images), tokenize=None
        ),
        DF,
        numbers,
    ),
    "captioning.DocumentFrequency.from_references": Entry(
        DocumentFrequency.from_references, {"references": TRUE_CAPTIONS, "append_eos": True}
    ),
    "captioning.DocumentFrequency.of_ngrams": Entry(
        FREQUENCY.of_ngrams, {"ngrams": ["a dog", "two"]}, one_each("ngrams")
    ),
    "captioning.draw": Entry(
        captioning.draw, {"image": IMAGE, "completion": {"a": "ab", "b": "c"}, "reference": ["ab"], "width": 64}
    ),
    "completion_text": Entry(
        completion_text,
        {"completion": {"boxes": np.ones((1, 4)), "labels": [1], "map": (torch.ones(2, 2), [{"id": 1}])}},
        lambda output, given: isinstance(output, str),
    ),
}

# --- detection ----------------------------------------------------------------------------------------------------------

BINS, NAMES = 20, ["cat", "dog"]
BOXES = detection.DetectionProcessor(image_processor(), NAMES, num_bins=BINS, max_boxes=2)
LIKELY = detection.DetectionProcessor(image_processor(), NAMES, num_bins=BINS, max_boxes=2, score="likelihood")
BOX = [3, 3, 13, 13, 24, 2]
BOX_IDS = [[*BOX, 5, 5, 20, 20, 25, 1], BOX, []]
OBJECTS = {"bbox": [[1, 1, 10, 12], [4, 4, 8, 8]], "category": [0, "dog"], "area": [100.0, None], "iscrowd": [0, 1]}
BOX_ROWS = [{"image": IMAGE, "objects": OBJECTS}] * 2
TRUE_BOXES = BOXES.get_references(BOX_ROWS * 2)[:3]
FOUND = {"boxes": np.array([[1.0, 1, 10, 12], [4, 4, 12, 12]]), "labels": [0, 1], "scores": np.array([0.9, 0.2])}
TRUTH = {"boxes": [[1, 1, 10, 12], [4, 4, 9, 9]], "labels": [0, 1], "iscrowd": [0, 1], "area": [99.0, 25.0]}
DECODED = {"sequences": BOX_IDS, "per_token_logps": LOGPS, "watched_logps": LOGPS[..., None].repeat(1, 1, 2)}


def boxes_are_inside(output: Any, given: dict) -> bool:
    return finite(output) and len(output) == len(given["sequences"]) and all((b["boxes"] >= 0).all() for b in output)


def reward_output(output: RewardOutput, given: dict) -> bool:
    return finite(output.rewards) and len(output.rewards) == len(given["completion_ids"]) == len(given["references"])


def weights_of(output: torch.Tensor, given: dict) -> bool:
    return bool((output > 0).all() and output.isfinite().all() and len(output) == len(given["class_counts"]))


ENTRIES |= {
    "detection.batch_decode": Entry(
        BOXES.batch_decode, {"sequences": BOX_IDS, "image_sizes": SIZES}, boxes_are_inside
    ),
    "detection.decode": Entry(BOXES.decode, {"ids": BOX, "image_size": (32, 24)}, numbers),
    "detection.decode_completions": Entry(
        BOXES.decode_completions, {**DECODED, "image_sizes": SIZES}, boxes_are_inside
    ),
    "detection.decode_completions.likelihood": Entry(
        LIKELY.decode_completions, {**DECODED, "image_sizes": SIZES}, boxes_are_inside
    ),
    "detection.post_process": Entry(
        lambda sequences, scores, threshold, target_sizes: BOXES.post_process_object_detection(
            type("Outputs", (), {"sequences": sequences, "scores": scores}), threshold, target_sizes
        ),
        {
            "sequences": torch.tensor([BOX, BOX]),
            "scores": tuple(torch.zeros(6, 2, BOXES.vocab_size)),
            "threshold": 0.4,
            "target_sizes": [(24, 32), (10, 10)],
        },
        numbers,
    ),
    "detection.call": Entry(
        BOXES, {"images": [IMAGE] * 2, "objects": [OBJECTS] * 2, "seeds": [1, 2]}, says=["image", *OBJECTS]
    ),
    "detection.get_references": Entry(
        BOXES.get_references,
        {"rows": BOX_ROWS},
        rows_each,
        ["image", "objects", *OBJECTS],
    ),
    "detection.count_classes": Entry(
        lambda dataset: BOXES.count_classes(dataset), {"dataset": BOX_ROWS}, says=["objects", *OBJECTS, "Row"]
    ),
    "detection.RecallReward": Entry(
        detection.RecallReward(BINS, 2), {"completion_ids": BOX_IDS, "references": TRUE_BOXES}, reward_output
    ),
    "detection.AveragePrecisionReward": Entry(
        detection.AveragePrecisionReward(BINS, 2, [3, 5]),
        {"completion_ids": BOX_IDS, "references": TRUE_BOXES},
        reward_output,
    ),
    "detection.AveragePrecisionReward.options": Entry(
        lambda **options: detection.AveragePrecisionReward(**options)(BOX_IDS, TRUE_BOXES),
        {
            "num_bins": BINS,
            "num_labels": 2,
            "class_counts": [3, 5],
            "thresholds": (0.5, 0.75),
            "duplicate_weight": 0.3,
            "confidence_weight": 0.3,
        },
        lambda output, given: finite(output.rewards),
    ),
    "detection.class_weights": Entry(class_weights, {"class_counts": [3, 0, 10]}, weights_of),
    "detection.detection_reward": Entry(
        lambda **given: detection_reward(**given).rewards,
        {
            "completion_ids": torch.tensor([[BOX, BOX]]),
            "target_ids": torch.tensor([BOX]),
            "num_bins": BINS,
            "num_labels": 2,
            "class_weights": torch.ones(2),
            "thresholds": (0.5,),
        },
        numbers,
    ),
    "detection.confidence_targets": Entry(
        confidence_targets,
        {"match_iou": torch.rand(2, 3), "present": torch.ones(2, 3, dtype=torch.bool), "weight": 0.3},
        says=["probabilities"],
    ),
    "detection.coco_map": Entry(
        detection.coco_map, {"predictions": [FOUND] * 2, "references": [TRUTH] * 2, "num_labels": 2}, numbers, [*TRUTH]
    ),
    "detection.coco_results": Entry(
        detection.coco_results,
        {"predictions": [FOUND] * 2, "image_ids": [4, "b"], "category_ids": [1, 7]},
        numbers,
        [*FOUND, "prediction"],
    ),
    "detection.draw": Entry(
        detection.draw,
        {"image": IMAGE, "completion": FOUND, "reference": TRUTH, "label_names": NAMES, "width": 64, "title": "a"},
        says=[*TRUTH, "scores"],
    ),
}

# --- panoptic maps ------------------------------------------------------------------------------------------------------

SMALL = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]
MAPS = panoptic.PanopticProcessor(SMALL, CATEGORIES, max_instances=6, num_codes=12, code_len=4)
MAP = np.kron(np.array([[1, 1, 2], [0, 3, 2]]), np.ones((8, 8), int))
SEGMENTS = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 7, "iscrowd": 1}, {"id": 3, "category_id": 1}]
MAP_IMAGE = IMAGE.resize((24, 16))
MAP_ROWS = [{"image": MAP_IMAGE, "segmentation": MAP, "segments_info": SEGMENTS}] * 2
PAIRS = [(MAP, SEGMENTS), (MAP[:, ::-1], SEGMENTS)]
OF_MAPS = ["segment", "map", "id", "image", "Image", "prediction"]

ENTRIES |= {
    "panoptic.call": Entry(MAPS, {"images": [MAP_IMAGE] * 2, "codes": [[0, 1, 2, 11]] * 2}, says=["image"]),
    "panoptic.dense": Entry(
        MAPS.dense,
        {"images": [MAP_IMAGE] * 2, "segmentation": [MAP] * 2, "segments_info": [SEGMENTS] * 2, "seeds": [1, 2]},
        says=OF_MAPS,
    ),
    "panoptic.get_references": Entry(MAPS.get_references, {"rows": MAP_ROWS}, rows_each, OF_MAPS),
    "panoptic.from_dense": Entry(
        MAPS.from_dense,
        {
            "outputs": {"semantics": torch.randn(2, 8, 8, 3), "instances": torch.randn(2, 8, 8, 6)},
            "pixel_values": torch.zeros(2, 3, 8, 8),
        },
        says=["semantics", "instances", "Logits"],
    ),
    "panoptic.PanopticReward": Entry(
        panoptic.PanopticReward(),
        {"completions": PAIRS, "references": PAIRS},
        one_each("completions", "references"),
        OF_MAPS,
    ),
    "panoptic.PanopticQuality": Entry(
        lambda **given: panoptic.PanopticQuality(CATEGORIES)(**given),
        {"predictions": PAIRS, "references": PAIRS},
        numbers,
        OF_MAPS,
    ),
    "panoptic.panoptic_quality": Entry(
        panoptic.panoptic_quality,
        {"predictions": PAIRS, "references": PAIRS, "categories": CATEGORIES},
        numbers,
        OF_MAPS,
    ),
    "panoptic.to_segmentation": Entry(
        panoptic.to_segmentation, {"labels": np.ones((4, 4, 2), int), "category_ids": [1, 7], "size": (8, 8)}
    ),
    "panoptic.draw": Entry(
        panoptic.draw,
        {"image": MAP_IMAGE, "completion": PAIRS[0], "reference": PAIRS[1], "categories": CATEGORIES, "width": 64},
        says=OF_MAPS,
    ),
}

# --- colour -------------------------------------------------------------------------------------------------------------

COLOURS = colorization.ColorizationProcessor(SMALL, num_codes=12, code_len=4)
PICTURES = [RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8), RNG.random((8, 8, 3)), MAP_IMAGE.resize((8, 8))]

ENTRIES |= {
    "colorization.call": Entry(COLOURS, {"images": [IMAGE] * 2, "codes": [[0, 1, 2, 11]] * 2}, says=["image"]),
    "colorization.dense": Entry(COLOURS.dense, {"images": [IMAGE] * 2, "seeds": [1, 2]}, says=["image"]),
    "colorization.get_references": Entry(COLOURS.get_references, {"rows": MAP_ROWS}, one_each("rows"), ["image"]),
    "colorization.to_images": Entry(COLOURS.to_images, {"color": torch.rand(2, 8, 8, 3)}),
    "colorization.from_dense": Entry(
        COLOURS.from_dense,
        {"outputs": {"color": torch.rand(2, 8, 8, 3)}, "pixel_values": torch.zeros(2, 3, 8, 8)},
        says=["color"],
    ),
    "colorization.ColorfulnessReward": Entry(
        colorization.ColorfulnessReward(), {"completions": PICTURES}, one_each("completions"), ["image"]
    ),
    "colorization.fidelity_reward": Entry(
        colorization.fidelity_reward,
        {"completions": PICTURES, "references": [*PICTURES[:2], None]},
        one_each("completions", "references"),
        ["image"],
    ),
    "colorization.colorization_metrics": Entry(
        colorization.colorization_metrics,
        {"predictions": PICTURES, "references": PICTURES, "hue": "arctan", "entropy_over": "vivid"},
        numbers,
        ["image"],
    ),
    "colorization.draw": Entry(
        colorization.draw, {"image": IMAGE, "completion": {"a": PICTURES[0]}, "reference": IMAGE, "width": 32}
    ),
}

# --- what rewards return ------------------------------------------------------------------------------------------------

TARGETS = {
    "positions": torch.tensor([[0, 1], [1, 0]]),
    "ids": torch.tensor([[1, 2], [1, 2]]),
    "probabilities": torch.tensor([[0.5, 0.5], [0.0, 0.0]]),
    "weight": 0.3,
    "among": "candidates",
}


def checked_of(rewards, prefix_rewards, targets):
    made = None if targets is None else TokenTargets(**targets)
    return checked_output("mine", RewardOutput(rewards, made, prefix_rewards), IDS[:2])


ENTRIES |= {
    "rewards.TokenTargets": Entry(TokenTargets, TARGETS, lambda output, given: abs(output.weight) < 1e38),
    "rewards.RewardOutput": Entry(
        checked_of,
        {"rewards": [0.5, None], "prefix_rewards": torch.zeros(2, 4), "targets": TARGETS},
        lambda output, given: len(output.rewards) == 2,
        ["mine", "TokenTargets"],
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_broken_arguments_are_named_and_nothing_is_silently_wrong(name):
    entry = ENTRIES[name]
    faults = attack(entry.call, entry.arguments, random.Random(name), 8, entry.says, entry.check)
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:40]])
