"""Panoptic quality against panopticapi's way of counting: images a second, and how far the results differ.

    OMP_NUM_THREADS=1 python benchmarks/panoptic.py

panopticapi is not on PyPI, so the baseline is written here, in the same steps as its `pq_compute`: sort the ids of all
pixels of the prediction, then the pairs of ids of all pixels (`np.unique`), then match in Python loops. Both start
from maps in memory: reading PNGs, which takes longer than our matching, is left out. Maps are made up: segments are
the cells of random points, which the prediction has moved a little. "noise" is the worst case for us: the prediction
has a random id in every pixel, so that no run of equal pixels exists. Times are CPU time; the two take turns, each
over all images. The benchmark stops if results differ by more than 1e-9. The last two rows compare the evaluate
modules with the functions that they call.
"""

import argparse
import functools
from collections.abc import Callable

import evaluate
import numpy as np
from measuring import clock_of, compared, report
from scipy.spatial import cKDTree

import vision_rl
from vision_rl.tasks.panoptic import PanopticQuality, PanopticReward, match_segments


NUM_CATEGORIES = 20


def made_up(rng: np.random.Generator, size: int, num_segments: int, noise: bool) -> tuple:
    """A prediction and a reference. The reference has a band of void, a crowd, and areas as in COCO's JSON."""
    points = rng.random((num_segments, 2)) * size
    pair = []
    for places in (points + rng.normal(0, size / 40, points.shape), points):
        ids = rng.choice(2**24 - 1, num_segments, replace=False) + 1
        nearest = cKDTree(places).query(np.indices((size, size)).reshape(2, -1).T)[1]
        segmentation = ids[nearest].reshape(size, size).astype(np.int32)
        if places is points:
            segmentation[: size // 20] = 0
        elif noise:
            segmentation = rng.permuted(segmentation.reshape(-1)).reshape(size, size)
        areas = dict(zip(*np.unique(segmentation, return_counts=True), strict=True))
        segments_info = [
            {"id": int(segment), "category_id": place % NUM_CATEGORIES, "iscrowd": 0, "area": int(areas[segment])}
            for place, segment in enumerate(ids)
            if segment in areas
        ]
        pair.append((segmentation, segments_info))
    pair[1][1][0]["iscrowd"] = 1
    return tuple(pair)


def by_sorting(prediction, reference) -> tuple[float, int, int, int]:
    """Panopticapi's way: the sum of IoUs, and the numbers of true positives, false positives and false negatives."""
    predicted = {row["id"]: dict(row) for row in prediction[1]}
    true = {row["id"]: row for row in reference[1]}
    for segment, count in zip(*np.unique(prediction[0], return_counts=True), strict=True):
        if segment:
            predicted[segment]["area"] = count
    pairs = reference[0].astype(np.uint64) * 2**24 + prediction[0].astype(np.uint64)
    shared = {
        (int(key) // 2**24, int(key) % 2**24): count
        for key, count in zip(*np.unique(pairs, return_counts=True), strict=True)
    }
    ious, found, used = [], set(), set()
    for (t, p), count in shared.items():
        if t not in true or p not in predicted or true[t]["iscrowd"]:
            continue
        if true[t]["category_id"] != predicted[p]["category_id"]:
            continue
        iou = count / (true[t]["area"] + predicted[p]["area"] - count - shared.get((0, p), 0))
        if iou > 0.5:
            ious.append(iou)
            found.add(t)
            used.add(p)
    crowds = {row["category_id"]: t for t, row in true.items() if row["iscrowd"]}
    missed = sum(t not in found and not row["iscrowd"] for t, row in true.items())
    spurious = 0
    for p, row in predicted.items():
        ignored = shared.get((0, p), 0) + shared.get((crowds.get(row["category_id"]), p), 0)
        spurious += p not in used and ignored / row["area"] <= 0.5
    return sum(ious), len(found), int(spurious), missed


def by_runs(prediction, reference) -> tuple[float, int, int, int]:
    found = match_segments(prediction, reference)
    return float(found.ious.sum()), len(found.matched), len(found.spurious), len(found.missed)


def of_all(by: Callable, pairs: list[tuple]) -> list:
    return [by(*pair) for pair in pairs]


def main(size: int, num_images: int, rounds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for num_segments, noise in ((10, False), (20, False), (50, False), (99, False), (20, True)):
        pairs = [made_up(rng, size, num_segments, noise) for _ in range(num_images)]
        difference = max(np.abs(np.subtract(by_sorting(*pair), by_runs(*pair))).max() for pair in pairs)
        assert difference < 1e-9, f"results differ by {difference:.1e}"
        theirs, ours = (functools.partial(of_all, by, pairs) for by in (by_sorting, by_runs))
        rows.append(
            {
                "maps": f"{size} x {size}, {num_segments} segments{', noise' if noise else ''}",
                **compared("by sorting", theirs, ours, num_images, rounds, clock_of(kind="cpu")),
                "differs by": float(difference),
            }
        )
    pairs = [made_up(rng, size, 20, False) for _ in range(num_images)]
    predictions, references = ([pair[side] for pair in pairs] for side in (0, 1))
    described = [{"id": category, "isthing": 1} for category in range(NUM_CATEGORIES)]
    functions = {"panoptic_quality": PanopticQuality(described), "panoptic_reward": PanopticReward()}
    for name, function in functions.items():
        options = {"categories": described} if name == "panoptic_quality" else {}
        module = evaluate.load(vision_rl.metric_path(name), **options)
        of_module = functools.partial(module.compute, predictions=predictions, references=references)
        of_function = functools.partial(function, predictions, references)
        rows.append(
            {"maps": name, **compared("module", of_module, of_function, num_images, rounds, clock_of(kind="cpu"))}
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    report("panoptic", main(**vars(parser.parse_args())))
