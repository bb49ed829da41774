"""What the detection experiment measures: answers image by image, and intervals by resampling the images."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bootstrap import resampled_weights
from datasets import Dataset
from scipy.stats import mannwhitneyu
from transformers import VisionEncoderDecoderModel

from vision_rl.models.sampling import sample
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor, RecallReward
from vision_rl.tasks.detection.drawing import match_boxes
from vision_rl.tasks.detection.processing import SCORES
from vision_rl.tasks.detection.rewards import ABSENT, THRESHOLDS, TOKENS_PER_BOX


RECALLS = np.linspace(0, 1, 101)


def make_rewards(
    processor: DetectionProcessor, train_dataset: Dataset
) -> dict[str, RecallReward | AveragePrecisionReward]:
    """Make the rewards for recall, mAP and F1, by name; the classes weigh for mAP as the training boxes say.

    The paper's reward for mAP lets boxes of nothing cost nothing. For F1, which has no threshold of scores, they cost
    as much as duplicates.
    """
    sizes, counts = (processor.num_bins, processor.num_labels), processor.count_classes(train_dataset)
    return {
        "recall": RecallReward(*sizes),
        "map": AveragePrecisionReward(*sizes, class_counts=counts),
        "f1": RecallReward(*sizes, false_positive_weight=0.3),
    }


@dataclass
class Measured:
    """The greedy boxes of N images under every score, and numbers of each image."""

    boxes: dict[str, list[dict]]  # N predictions for each of SCORES, as `coco_map` takes them
    per_image: dict[str, np.ndarray]  # (N,) each: boxes, those that are right, and the rewards
    references: list[dict]


@torch.no_grad()
def measure(
    model: VisionEncoderDecoderModel,
    processor: DetectionProcessor,
    scenes: Dataset,
    rewards: Mapping[str, RecallReward | AveragePrecisionReward],
    stop_threshold: float = 0.0,
    num_generations: int = 4,
    batch_size: int = 200,
) -> Measured:
    """Decode greedily, score the boxes in every way, and reward greedy answers and `num_generations` samples.

    A `stop_threshold` of 0 is plain greedy decoding, and with 1 every answer has `max_boxes` boxes.
    """
    processor = copy.copy(processor)
    processor.stop_threshold = stop_threshold
    torch.manual_seed(0)
    references, per_image, boxes = [], defaultdict(list), {score: [] for score in SCORES}
    for start in range(0, len(scenes), batch_size):
        rows = [scenes[i] for i in range(start, min(start + batch_size, len(scenes)))]
        images, truth = [row["image"] for row in rows], processor.get_references(rows)
        pixel_values = processor(images=images)["pixel_values"]
        options = {"max_completion_length": processor.completion_length, "watched_ids": processor.watched_ids}
        greedy = sample(model, pixel_values, do_sample=False, logits_processor=processor.logits_processor, **options)
        for score in SCORES:
            processor.score = score
            boxes[score] += processor.decode_completions(
                greedy.completion_ids[:, 0].tolist(),
                per_token_logps=greedy.per_token_logps[:, 0],
                watched_logps=greedy.watched_logps[:, 0],
                image_sizes=[image.size for image in images],
            )
        answers = {"greedy": greedy}
        if num_generations:
            answers["sampled"] = sample(model, pixel_values, num_generations, **options)
        for how, completions in answers.items():
            times = completions.completion_ids.shape[1]
            repeated = [reference for reference in truth for _ in range(times)]
            for name, reward in rewards.items():
                scored = reward.score(completions.completion_ids.flatten(0, 1), repeated).rewards
                per_image[f"{how}_{name}_reward"] += scored.view(-1, times).mean(1).tolist()
        references += truth
    found = boxes["class"]
    per_image["boxes_per_image"] = [len(image["labels"]) for image in found]
    per_image["right_boxes"] = [
        (match_boxes(image, truth)[0] >= 0).sum() for image, truth in zip(found, references, strict=True)
    ]
    return Measured(boxes, {name: np.array(values) for name, values in per_image.items()}, references)


@torch.no_grad()
def stopping(
    model: VisionEncoderDecoderModel,
    processor: DetectionProcessor,
    scenes: Dataset,
    stop_threshold: float = 0.95,
    batch_size: int = 200,
) -> dict[str, float]:
    """What a model thinks of stopping at each place where it might: P(absent) at the first token of a box.

    Looked at are the boxes up to the first absent one of `stop_threshold`, so that many models pass through like places.

    Returns:
        The mean P(absent) while a true box is still to be found (`left`), and when all are found (`none_left`); and how well it
        tells the two apart: `auc`, the probability that it is higher at a place of the second kind.
    """
    processor = copy.copy(processor)
    processor.stop_threshold = stop_threshold
    absent, left = [], []
    for start in range(0, len(scenes), batch_size):
        rows = [scenes[i] for i in range(start, min(start + batch_size, len(scenes)))]
        completions = sample(
            model,
            processor(images=[row["image"] for row in rows])["pixel_values"],
            do_sample=False,
            logits_processor=processor.logits_processor,
            max_completion_length=processor.completion_length,
            watched_ids=(ABSENT,),
        )
        at_first = completions.watched_logps[:, 0, ::TOKENS_PER_BOX, 0].exp()  # (B, boxes)
        found = processor.batch_decode(completions.completion_ids[:, 0].tolist(), [row["image"].size for row in rows])
        for p_absent, boxes, truth in zip(at_first, found, processor.get_references(rows), strict=True):
            for place in range(min(len(boxes["labels"]) + 1, len(p_absent))):
                before = {name: values[:place] for name, values in boxes.items()}
                absent.append(float(p_absent[place]))
                left.append((match_boxes(before, truth)[0] >= 0).sum() < len(truth["labels"]))
    with_left, without = np.array(absent)[left], np.array(absent)[~np.array(left)]
    auc = mannwhitneyu(without, with_left).statistic / max(len(without) * len(with_left), 1)
    means = {"left": with_left.mean(), "none_left": without.mean()}
    return {name: round(float(value), 4) for name, value in {**means, "auc": auc}.items()}


class Resampled:
    """mAP and AR@100 of a data set whose images count as often as `weights (R, N)` says, R times over.

    Boxes match within their image, so they are matched once; only the sums over images are done again. Equals `coco_map`
    where all weights are 1 (no crowds, at most 100 boxes).
    """

    def __init__(self, predictions: Sequence[Mapping], references: Sequence[Mapping], num_labels: int):
        self.num_labels = num_labels
        self.num_true = np.stack(
            [np.bincount(truth["labels"], minlength=num_labels) for truth in references]
        )  # (N, C)
        hits = [found_at_ious(found, truth) for found, truth in zip(predictions, references, strict=True)]
        scores = np.concatenate([found["scores"] for found in predictions])
        order = np.argsort(-scores, kind="stable")
        self.hits = np.concatenate(hits)[order]  # (D, 10)
        self.labels = np.concatenate([found["labels"] for found in predictions])[order]
        self.images = np.repeat(np.arange(len(hits)), [len(hit) for hit in hits])[order]

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`map` and `ar_100`, each `(R,)`."""
        precisions, recalls = [], []
        for label in range(self.num_labels):
            of_label = self.labels == label
            weight = weights[:, self.images[of_label]].astype(np.float64)  # (R, d)
            num_true = (weights @ self.num_true[:, label]).astype(np.float64)  # (R,)
            found = np.cumsum(weight[:, None] * self.hits[of_label].T, axis=-1)  # (R, 10, d)
            precision = found / np.maximum(np.cumsum(weight, axis=-1), 1)[:, None]
            precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
            precision = np.pad(precision, ((0, 0), (0, 0), (0, 1)))  # 0 beyond the last recall
            with np.errstate(invalid="ignore", divide="ignore"):
                recall = found / num_true[:, None, None]  # NaN where a resample has none of the class
            at = np.array([[np.searchsorted(curve, RECALLS) for curve in curves] for curves in recall])  # (R, 10, 101)
            average = np.take_along_axis(precision, at, axis=-1).mean((1, 2))
            last = recall[..., -1].mean(-1) if recall.shape[-1] else np.zeros(len(weights))
            precisions.append(np.where(num_true > 0, average, np.nan))
            recalls.append(np.where(num_true > 0, last, np.nan))
        return {"map": np.nanmean(precisions, axis=0), "ar_100": np.nanmean(recalls, axis=0)}


def found_at_ious(prediction: Mapping, reference: Mapping) -> np.ndarray:
    """Whether each box finds a true one, at each of COCO's ten IoUs: `(n, 10)` bool, in the order of the boxes."""
    # at least the threshold, as in COCO
    return np.stack([match_boxes(prediction, reference, iou - 1e-10)[0] >= 0 for iou in THRESHOLDS], axis=1)


def resampled_columns(measured: Measured, num_labels: int, num_resamples: int = 400) -> dict[str, np.ndarray]:
    """All columns of the table, `(1 + R,)` each: of the images themselves, then of R resamples, the same for every model.

    `f1` counts every box that is written, whatever its score: right are those with an IoU above 0.5.
    """
    count = len(measured.references)
    weights = resampled_weights(count, num_resamples)
    columns = {name: weights @ values / count for name, values in measured.per_image.items()}
    true_boxes = weights @ [len(truth["labels"]) for truth in measured.references] / count
    columns["f1"] = 2 * columns.pop("right_boxes") / (columns["boxes_per_image"] + true_boxes)
    for score in SCORES:
        resampled = Resampled(measured.boxes[score], measured.references, num_labels).scores(weights)
        columns |= {f"map_{score}": resampled["map"], "ar_100": resampled["ar_100"]}
    return columns
