"""Detection: the reward against loops over boxes, in completions a second, and mAP against pycocotools.

    python benchmarks/detection.py

The loops are written straight from the rules (paper, section 4.2), with all IoUs of a completion computed by NumPy at
once. Our reward is called as the trainer calls it, with lists of ids. For mAP both sides start from the same boxes,
and the time to bring them into their form counts. Boxes are made up: most predictions are true boxes moved a little.
Times are CPU time; the two take turns. The benchmark stops if rewards differ by more than 1e-5 (ours are float32), or
mAP by more than 1e-9.
"""

import argparse
import contextlib
import os

import numpy as np
import torch
from measuring import clock_of, compared, report
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vision_rl.tasks.detection import RecallReward, coco_map
from vision_rl.tasks.detection.rewards import HIGH, NUM_SPECIAL, THRESHOLDS


NUM_BINS, NUM_LABELS, NUM_PREDICTIONS = 1000, 80, 100
DUPLICATE_WEIGHT = 0.3


def made_up(rng: np.random.Generator, num_true: int) -> tuple[np.ndarray, np.ndarray]:
    """100 predicted and up to `num_true` true boxes, as rows y0, x0, y1, x1, label."""
    true = boxes(rng, rng.integers(1, num_true + 1))
    near = true[rng.integers(len(true), size=NUM_PREDICTIONS)]
    near[:, :4] = (near[:, :4] + rng.normal(0, 20, (NUM_PREDICTIONS, 4))).astype(int).clip(0, NUM_BINS)
    near[:, 2:4] = np.maximum(near[:, 2:4], near[:, :2])
    anywhere = rng.random(NUM_PREDICTIONS) < 0.3
    near[anywhere] = boxes(rng, int(anywhere.sum()))
    return near, true


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.integers(0, NUM_BINS - 50, (count, 2))
    sides = rng.integers(20, 400, (count, 2))
    return np.column_stack([corners, (corners + sides).clip(max=NUM_BINS), rng.integers(0, 5, count)])


def as_ids(rows: np.ndarray) -> list[int]:
    labels = rows[:, 4] + NUM_SPECIAL + NUM_BINS + 1
    return np.column_stack([rows[:, :4] + NUM_SPECIAL, labels, np.full(len(rows), HIGH)]).reshape(-1).tolist()


def by_loops(predicted: np.ndarray, true: np.ndarray) -> float:
    """The number of matches minus 0.3 for each duplicate, as a mean over ten thresholds."""
    low, high = (
        np.maximum(predicted[:, None, :2], true[None, :, :2]),
        np.minimum(predicted[:, None, 2:4], true[None, :, 2:4]),
    )
    shared = (high - low).clip(0).prod(-1)
    areas, true_areas = ((rows[:, 2:4] - rows[:, :2]).prod(-1) for rows in (predicted, true))
    iou = shared / (areas[:, None] + true_areas - shared + 1e-9 * NUM_BINS**2)  # (N, M)
    total = 0.0
    for threshold in THRESHOLDS:
        best: dict[int, float] = {}
        num_kept = 0
        for p in range(len(predicted)):
            kept, kept_iou = -1, 0.0
            for t in range(len(true)):
                if predicted[p, 4] == true[t, 4] and iou[p, t] > kept_iou:
                    kept, kept_iou = t, iou[p, t]
            if kept_iou > threshold:
                num_kept += 1
                best[kept] = max(best.get(kept, 0.0), kept_iou)
        total += len(best) - DUPLICATE_WEIGHT * (num_kept - len(best))
    return total / len(THRESHOLDS)


def reward_row(rng: np.random.Generator, num_true: int, num_completions: int, rounds: int) -> dict:
    pairs = [made_up(rng, num_true) for _ in range(num_completions)]
    ids = [as_ids(predicted) for predicted, _ in pairs]
    references = [{"target_ids": as_ids(true)} for _, true in pairs]
    reward = RecallReward(NUM_BINS, NUM_LABELS, THRESHOLDS)

    def theirs() -> list[float]:
        return [by_loops(*pair) for pair in pairs]

    def ours() -> list[float]:
        return reward(ids, references).rewards

    difference = np.abs(np.subtract(theirs(), ours())).max()
    assert difference < 1e-5, f"rewards differ by {difference:.1e}"
    return {
        "what": f"reward, completions of {NUM_PREDICTIONS} boxes, {num_true} true ones or fewer",
        "against": "loops, NumPy",
        **compared("theirs", theirs, ours, num_completions, rounds, clock_of(kind="cpu")),
        "differs by": float(difference),
    }


def map_row(rng: np.random.Generator, num_images: int, rounds: int) -> dict:
    pairs = [made_up(rng, 20) for _ in range(num_images)]
    predictions = [
        {"boxes": predicted[:, [1, 0, 3, 2]], "labels": predicted[:, 4], "scores": rng.random(len(predicted))}
        for predicted, _ in pairs
    ]
    references = [{"boxes": true[:, [1, 0, 3, 2]], "labels": true[:, 4]} for _, true in pairs]

    def theirs() -> np.ndarray:
        return by_pycocotools(predictions, references)

    def ours() -> dict:
        return coco_map(predictions, references, NUM_LABELS)

    difference = np.abs(theirs() - [value for value in ours().values() if isinstance(value, float)]).max()
    assert difference < 1e-9, f"mAP differs by {difference:.1e}"
    return {
        "what": f"mAP of {num_images} images of {NUM_PREDICTIONS} boxes, 20 true ones or fewer",
        "against": "pycocotools",
        **compared("theirs", theirs, ours, num_images, rounds, clock_of(kind="cpu")),
        "differs by": float(difference),
    }


def by_pycocotools(predictions: list[dict], references: list[dict]) -> np.ndarray:
    """COCO's twelve numbers."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        true, found = COCO(), COCO()
        for dataset, images in ((true, references), (found, predictions)):
            annotations = [
                {
                    "id": 0,
                    "image_id": index,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
                for index, image in enumerate(images, start=1)
                for (x0, y0, x1, y1), label, score in zip(
                    image["boxes"].tolist(),
                    image["labels"].tolist(),
                    image.get("scores", np.zeros(len(image["labels"]))).tolist(),
                    strict=True,
                )
            ]
            dataset.dataset = {
                "images": [{"id": index} for index in range(1, len(images) + 1)],
                "categories": [{"id": label} for label in range(NUM_LABELS)],
                "annotations": [{**annotation, "id": place} for place, annotation in enumerate(annotations, start=1)],
            }
            dataset.createIndex()
        evaluation = COCOeval(true, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def main(num_completions: int, num_images: int, rounds: int) -> list[dict]:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = [reward_row(rng, num_true, num_completions, rounds) for num_true in (5, 20, 100)]
    return [*rows, map_row(rng, num_images, max(1, rounds // 3))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_completions", type=int, default=128)
    parser.add_argument("--num_images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    report("detection", main(**vars(parser.parse_args())))
