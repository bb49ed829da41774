"""COCO's numbers against pycocotools, the file of results, and the picture of a detection."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from recorded import golden

import vision_rl
from vision_rl import drawing as colours
from vision_rl.tasks.detection import drawing
from vision_rl.tasks.detection.average_precision import coco_map
from vision_rl.tasks.detection.coco_results import coco_results, save_coco_results


TWELVE = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def as_coco(content):
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def pycocotools_says(predictions, references, num_labels):
    """COCO's twelve numbers, and AP, AP50 and AR100 of each class."""
    images = [{"id": image} for image in range(1, len(references) + 1)]
    categories = [{"id": label} for label in range(num_labels)]

    def annotations(rows):
        made = []
        for image, row in enumerate(rows, start=1):
            for index, (box, label) in enumerate(zip(row["boxes"], row["labels"], strict=True)):
                x0, y0, x1, y1 = map(float, box)
                bbox = [x0, y0, round(x1 - x0, 9), round(y1 - y0, 9)]  # 32, not 31.999999999999996
                optional = {key: float(row[key][index]) for key in ("area", "scores") if key in row}
                made.append(
                    {
                        "id": len(made) + 1,
                        "image_id": image,
                        "category_id": int(label),
                        "bbox": bbox,
                        "area": optional.get("area", bbox[2] * bbox[3]),
                        "iscrowd": int(row["iscrowd"][index]) if "iscrowd" in row else 0,
                        "score": optional.get("scores"),
                    }
                )
        return {"images": images, "categories": categories, "annotations": made}

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(as_coco(annotations(references)), as_coco(annotations(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else -1

    return {
        **dict(zip(TWELVE, evaluation.stats, strict=True)),
        "per_class": [mean(precision[:, :, label, 0, 2]) for label in range(num_labels)],
        "per_class_50": [mean(precision[0, :, label, 0, 2]) for label in range(num_labels)],
        "per_class_ar_100": [mean(recall[:, label, 0, 2]) for label in range(num_labels)],
    }


def assert_equal(ours, theirs, atol=1e-9):
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        np.testing.assert_allclose(ours[key], expected, atol=atol, rtol=0, err_msg=key)


def boxes_of(rng, count, extent=320, whole=False):
    corner, side = rng.uniform(-8, extent, (count, 2)), rng.choice([8, 32, 60, 96, 150], (count, 2))
    side = side * rng.choice([1, rng.uniform(0.5, 1.5)], (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    return boxes.round() if whole else boxes


def scenes(seed, images=12, labels=4, most=12, **kwargs):
    """Predictions near the truth, elsewhere, doubled or of another class; images without truth or without predictions."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(images):
        truth = boxes_of(rng, rng.integers(0, most) * rng.integers(0, 2), **kwargs)
        reference = {"boxes": truth, "labels": rng.integers(0, labels - 1, len(truth))}  # the last class is never true
        if seed % 2:
            reference["iscrowd"] = (rng.random(len(truth)) < 0.15).astype(int)
            reference["area"] = np.prod(truth[:, 2:] - truth[:, :2], axis=1) * rng.uniform(0.4, 1.3, len(truth))
        near = truth.repeat(2, axis=0)
        near = near + rng.normal(0, rng.choice([0.1, 3, 15]), near.shape) * (rng.random((len(near), 1)) < 0.7)
        found = np.concatenate([near, boxes_of(rng, rng.integers(0, most), **kwargs)])
        found = np.concatenate(
            [np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], axis=1
        )
        wrong = rng.integers(0, labels, len(found))
        right = np.concatenate([reference["labels"].repeat(2), wrong[len(near) :]])
        keep = rng.random(len(found)) < rng.choice([0, 0.5, 1])
        scores = rng.random(len(found)).round(1 if seed % 3 else 9)  # rounded to ties, unless 3 divides the seed
        prediction = {"boxes": found, "labels": np.where(rng.random(len(found)) < 0.1, wrong, right), "scores": scores}
        predictions.append({key: values[keep] for key, values in prediction.items()})
        references.append(reference)
    return predictions, references


# The twelve numbers, and each class


@pytest.mark.compatibility
@pytest.mark.parametrize("seed", range(24))
def test_all_numbers_equal_pycocotools(seed):
    predictions, references = scenes(seed)
    assert_equal(coco_map(predictions, references, 4), pycocotools_says(predictions, references, 4))


def test_of_more_than_a_hundred_boxes_of_a_class_the_best_hundred_count_as_in_pycocotools():
    predictions, references = scenes(7, images=4, labels=2, most=180, extent=900)
    assert max(len(prediction["boxes"]) for prediction in predictions) > 250
    assert_equal(coco_map(predictions, references, 2), pycocotools_says(predictions, references, 2))


small_boxes = st.tuples(*[st.integers(0, 6)] * 4).map(
    lambda box: [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
)
objects = st.tuples(small_boxes, st.integers(0, 1), st.sampled_from([-3.0, 0.2, 0.2, 1e-9, 5.0]), st.integers(0, 1))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(objects, max_size=6), st.lists(objects, max_size=6)), min_size=1, max_size=3))
def test_small_boxes_on_a_grid_with_all_their_ties_equal_pycocotools(images):
    # Boxes of no area, IoUs exactly at a threshold, equal boxes, equal and negative scores
    predictions = [
        {"boxes": [o[0] for o in found], "labels": [o[1] for o in found], "scores": [o[2] for o in found]}
        for found, _ in images
    ]
    references = [
        {"boxes": [o[0] for o in truth], "labels": [o[1] for o in truth], "iscrowd": [o[3] for o in truth]}
        for _, truth in images
    ]
    assert_equal(coco_map(predictions, references, 2), pycocotools_says(predictions, references, 2))


def test_recorded_numbers_of_cocoeval_are_met():
    content = golden("coco_average_precision.json")
    index_of = {category: index for index, category in enumerate(content["category_ids"])}
    predictions, references = rows_of(content, index_of)
    ours = coco_map(predictions, references, len(index_of))
    np.testing.assert_allclose([ours[key] for key in TWELVE], content["stats"], atol=1e-9, rtol=0)
    for category, expected in content["per_class"].items():
        label = index_of[int(category)]
        measured = [ours[key][label] for key in ("per_class", "per_class_50", "per_class_ar_100")]
        wanted = [-1 if expected[key] is None else expected[key] for key in ("ap", "ap50", "ar100")]
        np.testing.assert_allclose(measured, wanted, atol=1e-9, rtol=0)
    # and back: the submitted boxes are those that were found
    results = coco_results(predictions, content["image_ids"], list(index_of))
    order = [(r["image_id"], r["category_id"], r["bbox"], r["score"]) for r in results]
    assert sorted(order) == sorted(
        (d["image_id"], d["category_id"], d["bbox"], d["score"]) for d in content["results"]
    )


def rows_of(content, index_of):
    """The rows by image id, which is COCOeval's order: of equal scores the first one counts first."""
    rows = {}
    for side in ("results", "annotations"):
        of_image = {image: [a for a in content[side] if a["image_id"] == image] for image in content["image_ids"]}
        rows[side] = []
        for image in content["image_ids"]:
            boxes = np.array([a["bbox"] for a in of_image[image]], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            row = {"boxes": boxes, "labels": [index_of[a["category_id"]] for a in of_image[image]]}
            for key, name in (
                (("scores", "score"),) if side == "results" else (("area", "area"), ("iscrowd", "iscrowd"))
            ):
                row[key] = [a[name] for a in of_image[image]]
            rows[side].append(row)
    return rows["results"], rows["annotations"]


def one_image(found, truth, **truth_fields):
    """`coco_map` of boxes of class 0 in one image. Their scores fall in the given order."""
    scores = [1 - index / 100 for index in range(len(found))]
    prediction = {"boxes": found, "labels": [0] * len(found), "scores": scores}
    return coco_map([prediction], [{"boxes": truth, "labels": [0] * len(truth), **truth_fields}])


SQUARE, ELSEWHERE = [0, 0, 10, 10], [50, 50, 60, 60]


def test_an_iou_of_exactly_the_threshold_is_a_match():
    half = one_image([[0, 0, 10, 5]], [SQUARE])
    assert (half["map_50"], half["map_75"], half["map"], half["ar_100"]) == (1, 0, 0.1, 0.1)


def test_a_false_box_hurts_only_before_the_true_one():
    # precision is 1/2 at every recall in the first order, 1 in the second
    assert one_image([ELSEWHERE, SQUARE], [SQUARE])["map"] == 0.5
    assert one_image([SQUARE, ELSEWHERE], [SQUARE])["map"] == 1


def test_a_duplicate_is_a_false_box():
    # precision 1 up to recall 1/2 makes 51 of the 101 levels; then the third box finds the other one at precision 2/3
    result = one_image([SQUARE, SQUARE, ELSEWHERE], [SQUARE, ELSEWHERE])
    assert result["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_crowd_costs_nothing_when_missed_and_excuses_the_boxes_on_it():
    assert one_image([ELSEWHERE, SQUARE], [SQUARE, [45, 45, 99, 99]], iscrowd=[0, 1])["map"] == 1
    assert one_image([SQUARE], [SQUARE, [45, 45, 99, 99]], iscrowd=[0, 1])["ar_100"] == 1


def test_recall_with_one_box_counts_the_best_scored_only():
    result = one_image([SQUARE, ELSEWHERE], [SQUARE, ELSEWHERE])
    assert (result["ar_1"], result["ar_10"]) == (0.5, 1)


def test_size_is_told_by_the_area_given_and_else_by_the_box():
    box = [0, 0, 40, 40]
    assert one_image([box], [box])["map_medium"] == 1
    small = one_image([box], [box], area=[1000])
    assert (small["map_small"], small["map_medium"]) == (1, -1)


def test_a_box_at_the_limit_keeps_its_size_wherever_it_stands():
    # 12.66 + 32 - 12.66 is 31.999999999999996 in floating point. An area of 32² pixels is small and medium at once.
    result = one_image([[12.66, 12.66, 44.66, 44.66]], [[12.66, 12.66, 44.66, 44.66]])
    assert (result["map_small"], result["map_medium"], result["map_large"]) == (1, 1, -1)


def test_classes_without_a_box_in_the_references_are_minus_one_and_leave_the_mean():
    prediction = {"boxes": [SQUARE, ELSEWHERE], "labels": [0, 2], "scores": [0.5, 0.9]}
    result = coco_map([prediction], [{"boxes": [SQUARE], "labels": [0]}], num_labels=4)
    assert result["map"] == 1
    assert result["per_class"] == result["per_class_50"] == result["per_class_ar_100"] == [1, -1, -1, -1]


def test_without_num_labels_the_largest_label_says_how_many_there_are():
    assert (
        len(coco_map([{"boxes": [SQUARE], "labels": [5], "scores": [1]}], [{"boxes": [], "labels": []}])["per_class"])
        == 6
    )


NOTHING = {"boxes": [], "labels": [], "scores": []}


def test_no_predictions_are_zero_and_nothing_to_find_is_minus_one():
    missed = coco_map([NOTHING], [{"boxes": [SQUARE], "labels": [0]}])
    assert (missed["map"], missed["ar_100"], missed["map_large"], missed["per_class"]) == (0, 0, -1, [0])
    for predictions, references in (([NOTHING], [NOTHING]), ([], [])):
        empty = coco_map(predictions, references)
        assert [empty[key] for key in TWELVE] == [-1] * 12 and empty["per_class"] == []


def test_arrays_tensors_and_lists_give_the_same():
    predictions, references = scenes(3)
    expected = coco_map(predictions, references, 4)
    for convert in (torch.from_numpy, np.ndarray.tolist, tuple):
        converted = [[{k: convert(v) for k, v in row.items()} for row in side] for side in (predictions, references)]
        assert coco_map(*converted, 4) == expected
    boxes = torch.tensor([SQUARE], dtype=torch.bfloat16, requires_grad=True)
    assert coco_map([{**GOOD, "boxes": boxes}], [GOOD])["map"] == 1


def test_nothing_is_printed_and_inputs_stay_as_they_are(capfd):
    predictions, references = scenes(5)
    before = repr((predictions, references))
    coco_map(predictions, references)
    assert capfd.readouterr() == ("", "") and repr((predictions, references)) == before


def test_values_that_a_trainer_logs_are_plain_numbers():
    result = coco_map(predictions=[NOTHING], references=[{"boxes": [SQUARE], "labels": [0]}])
    assert all(type(result[key]) is float for key in TWELVE)
    json.dumps(result, allow_nan=False)


GOOD = {"boxes": [SQUARE], "labels": [0], "scores": [1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[0, 0, 1]]}, r"`boxes` must be \(n, 4\).* image 1 they are \(1, 3\)"),
        ({"boxes": [[0, 0, 1, 1], [0, 0]]}, "`boxes` in the .* of image 1 is not an array of numbers"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "Box 0 in the .* of image 1 is not finite"),
        ({"boxes": [[5, 0, 4, 1]]}, "Box 0 in the .* of image 1 ends before it begins.*x0, y0, x1, y1"),
        ({"labels": [0, 1]}, r"`labels` must be \(1,\), one per box; in the .* of image 1 they are \(2,\)"),
        ({"labels": [-1]}, "`labels` must be whole numbers from 0; in the .* of image 1"),
        ({"labels": [0.5]}, "`labels` must be whole numbers from 0; in the .* of image 1"),
        ({"labels": [3]}, "A label in the .* of image 1 is 3, but there are 3 labels"),
        ({"labels": None}, "the .* of image 1 has no `labels`; it has: 'boxes', 'scores'"),
        ({"boxes": None}, "the .* of image 1 has no `boxes`"),
    ],
)
@pytest.mark.parametrize("side", ["prediction", "reference"])
def test_what_is_no_detection_is_refused_with_its_image(side, change, message):
    bad = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    rows = {"prediction": [GOOD, GOOD], "reference": [GOOD, GOOD], side: [GOOD, bad]}
    with pytest.raises(ValueError, match=message.replace("the .* of", f"the {side} of")):
        coco_map(rows["prediction"], rows["reference"], num_labels=3)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ({"scores": []}, {}, r"`scores` must be \(1,\), one per box; in the prediction of image 0"),
        ({"scores": [float("nan")]}, {}, "`scores` in the prediction of image 0 has NaN at 0"),
        ({}, {"area": [1, 2]}, r"`area` must be \(1,\)"),
        ({}, {"iscrowd": [2]}, "`iscrowd` must be 0 or 1; in the reference of image 0"),
    ],
)
def test_bad_scores_areas_and_crowd_flags_are_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        coco_map([{**GOOD, **prediction}], [{**GOOD, **reference}])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="There are 2 predictions but 1 references"):
        coco_map([GOOD, GOOD], [GOOD])


def test_average_precision_imports_neither_torch_nor_transformers():
    # The file is loaded by itself, because its package imports the processor too.
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('ap', {sys.modules[coco_map.__module__].__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'torch', 'transformers', 'faster_coco_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The evaluate module


@pytest.fixture(scope="module")
def module():
    return evaluate.load(vision_rl.metric_path("coco_map"))


def test_the_module_gives_what_the_function_gives(module):
    for seed in (2, 3):  # without and with `iscrowd` and `area`
        predictions, references = scenes(seed)
        assert module.compute(predictions=predictions, references=references, num_labels=4) == coco_map(
            predictions, references, 4
        )


def test_empty_lists_survive_the_module_in_any_row(module):
    rows = [NOTHING, GOOD, {key: np.array(value)[:0] for key, value in GOOD.items()}]
    for predictions, references in ((rows, rows[::-1]), ([NOTHING], [NOTHING]), ([NOTHING], [GOOD])):
        references = [{key: row[key] for key in ("boxes", "labels")} for row in references]
        assert module.compute(predictions=predictions, references=references) == coco_map(predictions, references)


def test_rows_with_and_without_optional_keys_mix_and_may_be_added_one_by_one(module):
    references = [
        {"boxes": [SQUARE], "labels": [0]},
        {"boxes": [SQUARE], "labels": [0], "area": [5e4], "iscrowd": [0]},
    ]
    references.append({**GOOD, "iscrowd": np.array([True]), "target_ids": [1, 2]})  # as a processor has them
    for reference in references:
        module.add(prediction=GOOD, reference=reference)
    assert module.compute() == coco_map([GOOD] * 3, references)


def test_the_module_names_the_image_too(module):
    with pytest.raises(ValueError, match="the prediction of image 0 has no `scores`"):
        module.compute(predictions=[{"boxes": [SQUARE], "labels": [0]}], references=[GOOD])


def test_the_example_of_the_module_and_its_card_is_true(module):
    lines = [line.strip() for line in module.inputs_description.splitlines()]
    names, last = {"coco_map": module}, [index for index, line in enumerate(lines) if line.startswith(">>>")][-1]
    for line in lines[:last]:
        if line.startswith(">>>") and "load" not in line:
            exec(line[4:], names)
    assert repr(eval(lines[last][4:], names)) == lines[last + 1]
    card = Path(vision_rl.metric_path("coco_map"), "README.md").read_text()
    assert f"{lines[last][4:]}\n# {lines[last + 1]}" in card


def test_the_example_of_the_reward_and_its_card_is_true():
    module = evaluate.load(vision_rl.metric_path("detection_reward"))
    lines = [line.strip() for line in module.inputs_description.splitlines()]
    *_, first, last = [index for index, line in enumerate(lines) if line.startswith(">>>")]
    names = {"reward": module}
    exec(lines[first][4:], names)
    assert repr(eval(lines[last][4:], names)) == lines[last + 1]
    card = Path(vision_rl.metric_path("detection_reward"), "README.md").read_text()
    assert f"{lines[last][4:]}\n# {lines[last + 1]}" in card


# Results for COCO's server


def test_results_are_boxes_with_width_and_height_under_cocos_ids(tmp_path):
    prediction = {"boxes": [[1.004, 2, 11, 22.123456], [0, 0, 1, 1]], "labels": [1, 0], "scores": [0.123456789, 1e-12]}
    predictions, ids = [NOTHING, prediction], np.array([9, 25])
    results = coco_results(predictions, ids, category_ids=[1, 90])
    assert results == [
        {"image_id": 25, "category_id": 90, "bbox": [1.0, 2.0, 10.0, 20.12], "score": 0.123457},
        {"image_id": 25, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 1e-12},
    ]
    save_coco_results(predictions, ids, [1, 90], tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("image_id", "written"),
    [("img_a", "img_a"), ("000123", "000123"), (1.0, 1), (1.5, 1.5), (np.int64(7), 7), (np.str_("7"), "7"), (0, 0)],
)
def test_ids_in_results_are_those_of_the_file(image_id, written):
    """A text stays a text, even one of digits, and no number is rounded to that of another image."""
    for category in (1, "1", "person"):
        (result,) = coco_results([GOOD], [image_id], [category])
        assert (result["image_id"], result["category_id"]) == (written, category)
        assert type(result["image_id"]) is type(written) and type(result["category_id"]) is type(category)


def test_ids_in_arrays_and_tensors_are_numbers():
    for ids in (np.array([5, 6]), torch.tensor([5, 6])):
        results = coco_results([GOOD, GOOD], ids, ids)
        assert [result["image_id"] for result in results] == [5, 6] and results[0]["category_id"] == 5
        json.dumps(results)


def test_pycocotools_reads_the_results_and_finds_the_same_numbers(tmp_path):
    predictions, references = scenes(4, whole=True)
    for prediction in predictions:
        prediction["boxes"] = prediction["boxes"].round(2)
    truth = []
    for image, reference in enumerate(references):
        for box, label in zip(reference["boxes"].tolist(), reference["labels"].tolist(), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            truth.append({"id": len(truth) + 1, "image_id": 100 + image, "category_id": 10 * label + 1, "bbox": bbox})
            truth[-1] |= {"area": bbox[2] * bbox[3], "iscrowd": 0}
    image_ids, category_ids = [100 + image for image in range(len(references))], [1, 11, 21, 31]
    content = {"images": [{"id": i} for i in image_ids], "categories": [{"id": c} for c in category_ids]}
    save_coco_results(predictions, image_ids, category_ids, tmp_path / "results.json")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = as_coco({**content, "info": {}, "annotations": truth})
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = coco_map(predictions, references, 4)
    np.testing.assert_allclose([ours[key] for key in TWELVE], evaluation.stats, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("image_ids", "category_ids", "message"),
    [
        ([1], [1], "There are 2 predictions but 1 image_ids"),
        ([1, 1], [1], "image_ids has an id more than once"),
        ([1, 1.0], [1], "image_ids has an id more than once"),
        ([1, None], [1], r"image_ids\[1\] is None, which is not an id"),
        ([True, 2], [1], r"image_ids\[0\] is True, which is not an id"),
        ([1, ["a"]], [1], r"image_ids\[1\] is \['a'\], which is not an id"),
        ([1, float("nan")], [1], r"image_ids\[1\] is nan, which is not an id"),
        (["", 2], [1], r"image_ids\[0\] is '', which is not a text"),
        ([1, 2], [None], r"category_ids\[0\] is None, which is not an id"),
        ([1, 2], [], "A label in the prediction of image 0 is 0, but there are 0 labels"),
    ],
)
def test_results_that_cannot_be_right_are_refused(image_ids, category_ids, message):
    with pytest.raises(ValueError, match=message):
        coco_results([GOOD, GOOD], image_ids, category_ids)


# Drawing


def colours_of(picture):
    used = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
    named = {"right": colours.RIGHT, "wrong": colours.WRONG, "missed": drawing.MISSED, "unjudged": colours.UNJUDGED}
    return {name for name, colour in named.items() if colour in used}


PHOTO = Image.new("L", (64, 64), 200)
TRUTH = {"boxes": [[5, 5, 25, 25], [30, 30, 50, 50]], "labels": [0, 1]}


@pytest.mark.parametrize(
    ("boxes", "labels", "shown"),
    [
        ([[5, 5, 25, 25], [30, 30, 50, 50]], [0, 1], {"right"}),
        ([[5, 5, 25, 25]], [0], {"right", "missed"}),
        ([[5, 5, 25, 25], [5, 6, 25, 25]], [0, 0], {"right", "wrong", "missed"}),  # a duplicate
        ([[5, 5, 25, 25]], [1], {"wrong", "missed"}),  # of another class
        ([[5, 5, 25, 15]], [0], {"wrong", "missed"}),  # an IoU of exactly 0.5
        ([], [], {"missed"}),
    ],
)
def test_found_false_and_missed_boxes_have_their_colours(boxes, labels, shown):
    prediction = {"boxes": boxes, "labels": labels, "scores": [0.5] * len(boxes)}
    assert colours_of(drawing.draw(PHOTO, prediction, TRUTH)) == shown


def test_of_two_boxes_on_one_object_the_higher_score_is_right():
    found = {
        "boxes": np.array([[5, 6, 25, 25], [5, 5, 25, 25.0]]),
        "labels": np.zeros(2),
        "scores": np.array([0.9, 0.2]),
    }
    reference = {key: np.array(values) for key, values in TRUTH.items()}
    matched, crowded = drawing.match_boxes(found, reference)
    assert matched.tolist() == [0, -1] and crowded.tolist() == [False, False]


def test_a_crowd_is_not_missed_and_a_box_on_it_is_not_judged():
    reference = {"boxes": [[0, 0, 60, 60]], "labels": [0], "iscrowd": [1]}
    assert colours_of(drawing.draw(PHOTO, NOTHING, reference)) == set()
    prediction = {"boxes": [[5, 5, 25, 25]], "labels": [0], "scores": [0.5]}
    assert colours_of(drawing.draw(PHOTO, prediction, reference)) == {"unjudged"}


def test_without_a_reference_nothing_is_judged():
    assert colours_of(drawing.draw(PHOTO, {**TRUTH, "scores": [0.9, 0.1]})) == {"unjudged"}


def test_boxes_below_the_score_threshold_are_not_drawn_and_find_nothing():
    prediction = {**TRUTH, "scores": [0.4, 0.6]}
    assert colours_of(drawing.draw(PHOTO, prediction, TRUTH, score_threshold=0.6)) == {"right", "missed"}
    assert colours_of(drawing.draw(PHOTO, prediction, score_threshold=0.7)) == set()


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "RGBA"])
def test_the_picture_is_the_image_enlarged_and_a_title_stands_above_it(mode):
    image = Image.linear_gradient("L").resize((60, 40)).convert(mode)
    picture = drawing.draw(image, NOTHING, width=180)
    enlarged = image.convert("RGB").resize((180, 120), Image.Resampling.NEAREST)
    assert picture.tobytes() == enlarged.tobytes()
    assert drawing.draw(image, NOTHING).size == (480, 320)  # eight times, within 512
    titled = drawing.draw(image, NOTHING, width=180, title="tuned")
    assert titled.width == 180 and titled.height > 120
    assert titled.crop((0, titled.height - 120, 180, titled.height)).tobytes() == enlarged.tobytes()


def test_class_names_are_written_and_boxes_may_leave_the_image():
    prediction = {"boxes": [[-20, -20, 90, 90], [60, 60, 64, 64]], "labels": [0, 1], "scores": [0.9, 0.1]}
    named = drawing.draw(PHOTO, prediction, label_names=["cat", "dog"])
    assert named.size == (512, 512) and named.tobytes() != drawing.draw(PHOTO, prediction).tobytes()


def test_found_false_and_missed_boxes_differ_in_shape_and_not_by_colour_alone():
    box = {"boxes": [[5, 20, 60, 60]], "labels": [0]}
    right = drawing.draw(PHOTO, {**box, "scores": [0.5]}, box)
    wrong = drawing.draw(PHOTO, {**box, "scores": [0.5]}, NOTHING)
    missed = drawing.draw(PHOTO, NOTHING, box)

    def ink(picture, colour):
        return (np.asarray(picture) == colour).all(-1)

    # the outlines are equal, so what differs is the tick from the cross; a dashed line has gaps
    assert (ink(right, colours.RIGHT) != ink(wrong, colours.WRONG)).any()
    edge = (slice(300, 480), slice(38, 43))  # of the left side, below the label
    assert ink(right, colours.RIGHT)[edge].any(1).all() and not ink(missed, drawing.MISSED)[edge].any(1).all()
