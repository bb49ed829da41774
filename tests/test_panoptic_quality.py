"""Panoptic quality and the reward: panopticapi's numbers, cases by hand, and an independent slow implementation."""

import functools
import json
import threading
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import torchmetrics.detection
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recorded import golden

import vision_rl
from vision_rl.tasks.panoptic import (
    PanopticQuality,
    PanopticReward,
    decode_logits,
    match_segments,
    panoptic_quality,
    read_coco_panoptic,
    resized,
    save_coco_panoptic,
    to_segmentation,
)
from vision_rl.tasks.panoptic.arrow import as_pair, as_row
from vision_rl.tasks.panoptic.segments import ids_from_rgb, places_of, resize_nearest, rgb_from_ids, run_bounds


EXACT = 1e-13
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
]


def row(*ids: int) -> np.ndarray:
    """A map with one row of pixels."""
    return np.array([ids])


def infos(**categories: int) -> list[dict]:
    """Segments: `infos(s7=1)` is segment 7, of category 1."""
    return [{"id": int(name[1:]), "category_id": category} for name, category in categories.items()]


def crowd(segments: list[dict], *ids: int) -> list[dict]:
    return [{**segment, "iscrowd": int(segment["id"] in ids)} for segment in segments]


def counts(prediction, reference) -> tuple[int, int, int]:
    found = match_segments(prediction, reference)
    return len(found.matched), len(found.spurious), len(found.missed)


# panopticapi's numbers


def test_quality_counts_and_reward_equal_panopticapi():
    content, maps = golden("panoptic_quality.json"), golden("panoptic_quality_maps.npz")
    predictions, references = (
        [(maps[f"{side}_{image['image_id']}"], image["segments_info"]) for image in content[f"{side}s"]]
        for side in ("prediction", "reference")
    )
    assert_panopticapis_numbers(content, predictions, references)


def test_quality_of_images_of_coco_equals_panopticapi():
    """Only the number of pixels of each pair of ids matters, so the recorded pairs are laid out in one row of pixels."""
    content = golden("panoptic_quality_overlaps.json")
    predictions, references = [], []
    for predicted, true in zip(content["predictions"], content["references"], strict=True):
        reference_ids, prediction_ids, pixels = np.array(true["overlaps"]).T
        predictions.append((prediction_ids.repeat(pixels)[None], predicted["segments_info"]))
        references.append((reference_ids.repeat(pixels)[None], true["segments_info"]))
    assert_panopticapis_numbers(content, predictions, references)


def assert_panopticapis_numbers(content, predictions, references):
    quality = panoptic_quality(predictions, references, content["categories"])
    for part in ("All", "Things", "Stuff"):
        assert quality[part] == pytest.approx(content["overall"][part], abs=EXACT), part
    for category, expected in content["overall"]["per_class"].items():
        assert quality["per_class"][int(category)] == pytest.approx(expected, abs=EXACT), category

    flat = PanopticQuality(content["categories"])(predictions, references)
    rewards = PanopticReward()(predictions, references)
    for image, expected in enumerate(content["per_image"]):
        case = content["references"][image].get("case", image)
        found = match_segments(predictions[image], references[image])
        assert np.sort(found.ious) == pytest.approx(sorted(expected["tp_ious"]), abs=EXACT), case
        measured = [flat[f"per_image_{key}"][image] for key in ("tp", "fp", "fn")]
        assert measured == [expected[key] for key in ("tp", "fp", "fn")], case
        assert flat["per_image_iou"][image] == pytest.approx(expected["sum_iou"], abs=EXACT), case
        assert rewards[image] == pytest.approx(expected["reward"], abs=EXACT), case


# The traps by hand, on rows of pixels. Predicted segments have the ids 7, 8 and 9


def test_an_iou_of_exactly_one_half_is_a_miss_and_just_above_is_a_match():
    half = (row(7, 7, 0, 0), infos(s7=1)), (row(7, 8, 8, 8), infos(s7=1, s8=2))
    assert counts(*half) == (0, 1, 2)
    above = (row(7, 7, 7, 0), infos(s7=1)), (row(7, 7, 8, 8), infos(s7=1, s8=2))
    assert match_segments(*above).ious.tolist() == [2 / 3]


def test_a_match_is_of_one_category():
    assert counts((row(7, 7, 7), infos(s7=1)), (row(7, 7, 7), infos(s7=2))) == (0, 1, 1)


def test_void_leaves_the_union():
    found = match_segments((row(7, 7, 7, 7), infos(s7=1)), (row(5, 5, 0, 0), infos(s5=1)))
    assert found.ious.tolist() == [1.0]


def test_prediction_on_void_is_not_a_false_positive():
    reference = row(5, 0, 0, 0), infos(s5=2)
    assert counts((row(7, 7, 7, 0), infos(s7=1)), reference) == (0, 0, 1)
    assert counts((row(7, 7, 0, 0), infos(s7=1)), reference) == (0, 1, 1)  # half of it on void is not enough


def test_a_crowd_excuses_predictions_of_its_own_category_only():
    reference = row(5, 5, 5, 5), crowd(infos(s5=1), 5)
    assert counts((row(7, 7, 7, 0), infos(s7=1)), reference) == (0, 0, 0)
    assert counts((row(7, 7, 7, 0), infos(s7=2)), reference) == (0, 1, 0)


def test_a_crowd_is_neither_found_nor_missed():
    assert counts((row(7, 7), infos(s7=1)), (row(5, 5), crowd(infos(s5=1), 5))) == (0, 0, 0)
    assert counts((row(0, 0), []), (row(5, 5), crowd(infos(s5=1), 5))) == (0, 0, 0)


def test_of_a_categorys_crowds_only_the_last_excuses():
    segments = crowd(infos(s5=1, s6=1), 5, 6)
    first, last = (row(7, 7, 0, 0), infos(s7=1)), (row(0, 0, 7, 7), infos(s7=1))
    reference = row(5, 5, 6, 6), segments
    assert counts(first, reference) == (0, 1, 0)
    assert counts(last, reference) == (0, 0, 0)


def test_void_and_crowd_add_up():
    reference = row(0, 5, 6, 6), crowd(infos(s5=1, s6=2), 5)
    assert counts((row(7, 7, 7, 0), infos(s7=1)), reference) == (0, 0, 1)


def test_pixels_whose_id_the_reference_does_not_list_are_not_void():
    found = counts((row(7, 7, 7), infos(s7=1)), (row(5, 9, 9), infos(s5=1)))
    assert found == (0, 1, 1)


def test_a_true_segment_without_pixels_is_missed():
    assert counts((row(0, 0), []), (row(0, 0), infos(s5=1))) == (0, 0, 1)


def test_ids_mean_nothing_across_the_two_maps():
    prediction = row(1, 1, 2, 2), infos(s1=1, s2=2)
    reference = row(2, 2, 1, 1), infos(s2=1, s1=2)
    assert match_segments(prediction, reference).matched.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64])
def test_maps_of_any_integers_are_counted(dtype):
    ids = np.arange(1, 41).repeat(3)[None]
    segments = [{"id": i, "category_id": 1} for i in range(1, 41)]
    assert counts((ids.astype(dtype), segments), (torch.tensor(ids), segments)) == (40, 0, 0)
    assert counts((np.roll(ids, 1).astype(dtype), segments), (ids.tolist(), segments)) == (0, 40, 40)


def test_categories_that_do_not_occur_leave_the_mean():
    pair = [(row(7, 7), infos(s7=1))]
    quality = panoptic_quality(pair, pair, CATEGORIES)
    assert quality["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert quality["Stuff"] == {"pq": 0, "sq": 0, "rq": 0, "n": 0}
    assert quality["per_class"][2] == {"pq": 0, "sq": 0, "rq": 0}
    of_classes = PanopticQuality(CATEGORIES)(pair, pair)
    assert all(of_classes[f"per_class_{key}"] == [1, -1, -1] for key in ("pq", "sq", "rq"))


def test_a_set_is_pooled_before_the_mean_over_categories():
    found, missed = (row(7, 7), infos(s7=1)), (row(0, 0), [])
    quality = panoptic_quality([found, missed], [found, found], CATEGORIES)
    assert quality["All"]["pq"] == pytest.approx(1 / 1.5)
    assert (quality["All"]["sq"], quality["All"]["rq"]) == pytest.approx((1, 1 / 1.5))


def test_the_reward_is_the_ious_minus_three_tenths_for_each_false_positive():
    prediction = row(1, 1, 1, 2, 3, 0), infos(s1=1, s2=2, s3=20)
    reference = row(5, 5, 6, 6, 6, 6), infos(s5=1, s6=1)
    assert PanopticReward().score(prediction, reference) == pytest.approx(2 / 3 - 0.6)
    assert PanopticReward(false_positive_weight=0).score(prediction, reference) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="must not be negative"):
        PanopticReward(false_positive_weight=-1)


def test_the_reward_is_called_as_in_trl_and_logs_what_matched():
    logged = {}
    pair = (row(1, 1, 2), infos(s1=1, s2=2)), (row(5, 5, 5), infos(s5=1))
    rewards = PanopticReward()([pair[0], pair[1]], references=[pair[1], pair[1]], log_metric=logged.__setitem__, ids=1)
    assert rewards == pytest.approx([2 / 3 - 0.3, 1.0])
    assert logged == pytest.approx({"matches/mean": 1, "matches/iou": 5 / 6, "false_positives/mean": 0.5})
    assert PanopticReward()([], references=[], log_metric=logged.__setitem__) == []


# Sizes


def test_the_reward_looks_at_the_completions_size_and_the_metric_at_the_references():
    large = np.zeros((4, 4), int)
    large[:, :2] = 9
    small = np.array([[3, 0], [3, 3]])
    prediction, reference = (small, infos(s3=1)), (large, crowd(infos(s9=1)))
    assert PanopticReward().score(prediction, reference) == PanopticReward().score(
        prediction, (np.array([[9, 0], [9, 0]]), infos(s9=1))
    )
    assert PanopticQuality(CATEGORIES)([prediction], [reference])["per_image_iou"] == [1.0]  # the rest is void
    with pytest.raises(
        ValueError, match=r"Image 0: The prediction has \(2, 2\) pixels .*, but the reference has \(4, 4\)"
    ):
        panoptic_quality([prediction], [reference], CATEGORIES)


def test_nearest_resize_takes_the_pixel_below_the_new_ones_centre():
    assert resize_nearest(np.arange(5)[None], (1, 2)).tolist() == [[1, 3]]
    assert resize_nearest(np.arange(2)[None], (1, 5)).tolist() == [[0, 0, 1, 1, 1]]
    values = golden("color_conversion.npz")
    for size in (16, 64):
        expected = values[f"resize_nearest_{size}"]
        assert (resize_nearest(values["resize_in"], (size, size)) == expected).all()


def test_segments_that_vanish_in_a_resize_leave_the_list():
    ids, segments_info = resized((row(1, 1, 1, 2), infos(s1=1, s2=2)), (1, 1))
    assert ids.tolist() == [[1]] and segments_info == infos(s1=1)


# An independent implementation: slow, straight from the definition


def slow_counts(prediction, reference) -> tuple[list[float], int, int]:
    """IoUs of the matches, false positives and false negatives, from a mask for each segment and all pairs."""
    ious, used, found = [], set(), set()
    void = reference[0] == 0
    for p in prediction[1]:
        for r in reference[1]:
            a, b = prediction[0] == p["id"], reference[0] == r["id"]
            if p["category_id"] == r["category_id"] and not r["iscrowd"] and (a & b).any():
                iou = (a & b).sum() / ((a & ~void) | b).sum()
                if iou > 0.5:
                    ious.append(iou)
                    used.add(p["id"])
                    found.add(r["id"])
    false_positives = 0
    for p in prediction[1]:
        area = (prediction[0] == p["id"]).sum()
        on_crowd = [
            ((prediction[0] == p["id"]) & (reference[0] == r["id"])).sum()
            for r in reference[1]
            if r["iscrowd"] and r["category_id"] == p["category_id"]
        ]
        ignored = ((prediction[0] == p["id"]) & void).sum() + (on_crowd[-1] if on_crowd else 0)
        false_positives += p["id"] not in used and not ignored / area > 0.5
    return ious, false_positives, sum(r["id"] not in found and not r["iscrowd"] for r in reference[1])


@st.composite
def segmentations(draw):
    ids = draw(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=5, unique=True))
    flat = draw(st.lists(st.sampled_from([0, *ids]), min_size=42, max_size=42))
    values = np.sort(np.array(flat).reshape(6, 7), axis=draw(st.sampled_from([0, 1])))  # some coherence
    rows = [
        {"id": i, "category_id": draw(st.sampled_from([1, 20])), "iscrowd": int(draw(st.integers(0, 4)) == 0)}
        for i in ids
        if (values == i).any()
    ]
    return values, rows


@settings(max_examples=150, deadline=None)
@given(segmentations(), segmentations())
def test_it_counts_as_a_mask_for_each_segment_does(prediction, reference):
    ious, false_positives, false_negatives = slow_counts(prediction, reference)
    found = match_segments(prediction, reference)
    assert sorted(found.ious) == pytest.approx(sorted(ious), abs=EXACT)
    assert (len(found.spurious), len(found.missed)) == (false_positives, false_negatives)
    assert PanopticReward().score(prediction, reference) == pytest.approx(sum(ious) - 0.3 * false_positives)


@settings(max_examples=60, deadline=None)
@given(segmentations(), segmentations(), st.permutations(range(1, 6)), st.randoms())
def test_neither_the_ids_nor_the_order_of_the_list_matter(prediction, reference, numbers, random):
    new = dict(zip([segment["id"] for segment in prediction[1]], numbers, strict=False)) | {0: 0}
    renamed = [{**segment, "id": new[segment["id"]]} for segment in prediction[1]]
    random.shuffle(renamed)
    other = np.vectorize(new.__getitem__)(prediction[0]), renamed
    assert PanopticReward().score(other, reference) == pytest.approx(PanopticReward().score(prediction, reference))


@settings(max_examples=60, deadline=None)
@given(segmentations())
def test_the_truth_scores_one_a_segment(reference):
    reference = reference[0], crowd(reference[1])
    assert PanopticReward().score(reference, reference) == len(reference[1])
    assert panoptic_quality([reference], [reference], CATEGORIES)["All"]["pq"] == (1.0 if reference[1] else 0.0)


def test_of_two_crowds_of_a_category_the_first_predicted_as_it_is_costs():
    """panopticapi keeps only one crowd for each category, so even the truth itself has a false positive then."""
    reference = row(5, 6), crowd(infos(s5=1, s6=1), 5, 6)
    assert counts(reference, reference) == (0, 1, 0)


@settings(max_examples=60, deadline=None)
@given(segmentations(), segmentations())
def test_a_prediction_segment_is_counted_once_at_most(prediction, reference):
    found = match_segments(prediction, reference)
    places = [*found.matched[:, 0], *found.spurious]
    assert len(set(places)) == len(places)
    places = [*found.matched[:, 1], *found.missed]
    assert len(set(places)) == len(places)


def test_torchmetrics_finds_the_same_quality():
    """On maps where both rules agree: no crowds, no void in the prediction, one segment for each kind of stuff."""
    theirs = torchmetrics.detection.PanopticQuality(things={1, 2}, stuffs={20}, allow_unknown_preds_category=True)
    category = np.array([99, 1, 1, 2, 20])  # of segments 0 to 4; torchmetrics does not know 99, so it is void
    rng = np.random.default_rng(0)
    predictions, references = [], []
    for _ in range(8):
        true, other = (rng.integers(0, 5, (6, 6)).repeat(4, 0).repeat(4, 1) for _ in range(2))
        found = np.where(rng.random((24, 24)) < 0.15, other, true)
        found[found == 0] = 4
        for ids, side in ((found, predictions), (true, references)):
            segments = [{"id": i, "category_id": int(category[i])} for i in range(1, 5) if (ids == i).any()]
            side.append((ids, segments))
        theirs.update(*(torch.tensor(np.stack([category[ids], ids % 4], -1))[None] for ids in (found, true)))
    quality = panoptic_quality(predictions, references, CATEGORIES)["All"]["pq"]
    assert 0.3 < quality < 1
    assert float(theirs.compute()) == pytest.approx(quality, abs=1e-6)  # torchmetrics sums in float32


# From logits


def test_decoded_maps_equal_the_reference_for_every_min_fraction():
    values = golden("panoptic_decode.npz")
    semantics, instances = (torch.from_numpy(values[key].astype(np.float32)) for key in ("semantics", "instances"))
    for index, fraction in enumerate(values["min_fractions"]):
        decoded = decode_logits(semantics, instances, float(fraction))
        assert (decoded.numpy() == values[f"out_{index}"]).all(), fraction


def test_an_instance_has_the_class_of_its_summed_logits_not_of_most_pixels():
    instances = torch.tensor([[[[0.0, 1.0]] * 3]])  # three pixels of instance 1
    semantics = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]]]])
    assert decode_logits(semantics, instances).tolist() == [[[[2, 1]] * 3]]
    assert decode_logits(semantics, instances, min_fraction=1.0).tolist() == [[[[0, 0]] * 3]]
    with pytest.raises(ValueError, match="Logits must have the shapes"):
        decode_logits(semantics[0], instances[0])


def test_every_pair_of_class_and_instance_is_a_segment_and_class_0_is_void():
    labels = np.array([[[1, 1], [1, 2], [0, 3]], [[2, 0], [1, 1], [0, 0]]])
    ids, segments_info = to_segmentation(labels, category_ids=[18, 200])
    assert ids.tolist() == [[1, 2, 0], [3, 1, 0]]
    assert segments_info == infos(s1=18, s2=18, s3=200)
    tall = to_segmentation(torch.tensor(labels), [18, 200], size=(4, 3))[0]
    assert tall.tolist() == [[1, 2, 0], [1, 2, 0], [3, 1, 0], [3, 1, 0]]
    with pytest.raises(ValueError, match=r"Classes must be from 0 to 1"):
        to_segmentation(labels, [18])
    with pytest.raises(ValueError, match=r"must be \(H, W, 2\)"):
        to_segmentation(labels[0], [18, 200])


# COCO's files


@settings(max_examples=30, deadline=None)
@given(segmentations())
def test_colours_keep_every_id(reference):
    assert (ids_from_rgb(rgb_from_ids(reference[0])) == reference[0]).all()


def test_the_colour_of_an_id_is_cocos():
    assert rgb_from_ids(row(1 + 2 * 256 + 3 * 65536)).tolist() == [[[1, 2, 3]]]
    with pytest.raises(ValueError, match="fit into a colour"):
        rgb_from_ids(row(2**24))


def test_predictions_are_written_as_coco_has_them_and_read_again(tmp_path):
    predictions = [(row(7, 7, 0), infos(s7=1)), (row(2**24 - 1, 3, 3), infos(s16777215=20, s3=2))]
    save_coco_panoptic(predictions, np.array([9, 30]), tmp_path / "maps", tmp_path / "maps.json")
    content = json.loads((tmp_path / "maps.json").read_text())
    assert content["annotations"][0] == {
        "image_id": 9,
        "file_name": "000000000009.png",
        "segments_info": [{"id": 7, "category_id": 1}],
    }
    again, image_ids = read_coco_panoptic(tmp_path / "maps", tmp_path / "maps.json")
    assert image_ids == [9, 30]
    for (ids, segments), (expected, segments_info) in zip(again, predictions, strict=True):
        assert (ids == expected).all() and segments == segments_info
    with pytest.raises(ValueError, match="an id more than once"):
        save_coco_panoptic(predictions, [1, 1], tmp_path, tmp_path / "x.json")
    with pytest.raises(ValueError, match="2 predictions but 1 image_ids"):
        save_coco_panoptic(predictions, [1], tmp_path, tmp_path / "x.json")
    with pytest.raises(ValueError, match="Image 5: 1 ids of the map are not in its segments_info; the first is 8"):
        save_coco_panoptic([(row(7, 8), infos(s7=1))], [5], tmp_path, tmp_path / "x.json")


def test_predictions_of_the_models_size_are_written_at_the_images(tmp_path):
    small = np.array([[7, 7], [8, 8]]), infos(s7=1, s8=2)
    save_coco_panoptic([small], [1], tmp_path, tmp_path / "maps.json", image_sizes=[(6, 4)])
    ((ids, _),), _ = read_coco_panoptic(tmp_path, tmp_path / "maps.json")
    assert ids.tolist() == [[7] * 6] * 2 + [[8] * 6] * 2
    with pytest.raises(ValueError, match="1 predictions but 2 image_sizes"):
        save_coco_panoptic([small], [1], tmp_path, tmp_path / "maps.json", image_sizes=[(6, 4)] * 2)


@pytest.mark.parametrize("image_id", ["../out", "/tmp/out", "a/b", "..\\out", "a\0b", "x/../../out", "/", "./a"])
def test_no_image_id_writes_outside_of_its_folder(tmp_path, image_id):
    (tmp_path / "maps").mkdir()
    (tmp_path / "out.png").write_text("mine")
    good = row(7, 7), infos(s7=1)
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        save_coco_panoptic([good, good], ["fine", image_id], tmp_path / "maps", tmp_path / "maps.json")
    assert (tmp_path / "out.png").read_text() == "mine" and not list((tmp_path / "maps").iterdir())
    assert not (tmp_path / "maps.json").exists()


def test_ids_of_images_stay_texts_or_numbers_in_files_of_their_own(tmp_path):
    good = row(7, 7), infos(s7=1)
    ids = ["img a", "000123", 5, 1.5, np.int64(7), "..", "é"]
    save_coco_panoptic([good] * 7, ids, tmp_path / "maps", tmp_path / "maps.json")
    again, image_ids = read_coco_panoptic(tmp_path / "maps", tmp_path / "maps.json")
    assert image_ids == ids and len(again) == len(list((tmp_path / "maps").iterdir())) == 7
    with pytest.raises(ValueError, match="would name the same file"):
        save_coco_panoptic([good] * 2, [1, "000000000001"], tmp_path / "maps", tmp_path / "maps.json")
    with pytest.raises(ValueError, match=r"image_ids\[0\] is None, which is not an id"):
        save_coco_panoptic([good], [None], tmp_path / "maps", tmp_path / "maps.json")


def test_maps_are_read_from_their_folder_only(tmp_path):
    (tmp_path / "maps").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    annotation = {"image_id": 1, "file_name": "../secret.png", "segments_info": []}
    for change, message in (
        ({}, "leads out of its folder"),
        ({"file_name": str(tmp_path / "secret.png")}, "leads out of its folder"),
        ({"file_name": "maps.json"}, "are not there"),
        ({"segments_info": None, "file_name": None}, "are not there"),
    ):
        (tmp_path / "maps.json").write_text(json.dumps({"annotations": [{**annotation, **change}]}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_coco_panoptic(tmp_path / "maps", tmp_path / "maps.json")
    (tmp_path / "maps.json").write_text(json.dumps({"annotations": [7]}))
    with pytest.raises(ValueError, match="an annotation needs"):
        read_coco_panoptic(tmp_path / "maps", tmp_path / "maps.json")


# What is wrong is said


def test_rows_in_place_of_pairs_are_refused_by_reward_and_metric():
    given = {"map": row(7, 7), "segments_info": infos(s7=1)}
    good = row(7, 7), infos(s7=1)
    for prediction, reference in ((given, good), (good, given)):
        with pytest.raises(ValueError, match="A segmentation must be a pair .*; this is a dict"):
            PanopticQuality(CATEGORIES)([prediction], [reference])
        with pytest.raises(ValueError, match="A segmentation must be a pair .*; this is a dict"):
            PanopticReward()([prediction], [reference])


@pytest.mark.parametrize(
    "prediction, message",
    [
        ((row(7, 8), infos(s7=1)), "Image 1: 1 ids of the predicted map are not in its segments_info; the first is 8"),
        ((row(7, 7), infos(s7=1, s8=1)), "Image 1: 1 predicted segments have no pixel in the map; the first .* 8"),
        ((row(7, 7), infos(s7=3)), r"Image 1: the category ids \[3\] are not among those of categories"),
        ((row(7, 7), infos(s7=1) * 2), r"Image 1: The ids of an image's segments must differ.*\[7, 7\]"),
        ((row(0, 0), infos(s0=1)), "Image 1: The ids of an image's segments must differ, and none may be 0"),
        ((row(7, 7), [{"id": 7}]), "Image 1: A segment needs `id` and `category_id`"),
        ((row(7, 7) / 2, infos(s7=1)), r"Image 1: A map of segment ids must be \(H, W\) of integers; .* of float64"),
        ((row(7, 7)[0], infos(s7=1)), r"Image 1: A map .*; this one is \(2,\)"),
        (row(7, 7), "Image 1: A segmentation must be a pair"),
    ],
)
def test_bad_predictions_name_their_image(prediction, message):
    good = row(7, 7), infos(s7=1)
    with pytest.raises(ValueError, match=message):
        panoptic_quality([good, prediction], [good, good], CATEGORIES)


def test_bad_categories_and_counts():
    good = row(7, 7), infos(s7=1)
    with pytest.raises(ValueError, match="There are 2 predictions and 1 references"):
        PanopticQuality(CATEGORIES)([good, good], [good])
    with pytest.raises(ValueError, match="`isthing` of the category 2 is '0'; it must be 0 or 1"):
        PanopticQuality([{"id": 2, "isthing": "0"}])
    with pytest.raises(ValueError, match="Each of the categories needs `id` and `isthing`"):
        PanopticQuality([{"id": 1}])
    with pytest.raises(ValueError, match=r"at least one, with different ids; the ids are \[1, 1\]"):
        PanopticQuality([CATEGORIES[0]] * 2)


# The evaluate modules


@pytest.fixture(scope="module")
def modules():
    quality = evaluate.load(vision_rl.metric_path("panoptic_quality"), categories=CATEGORIES)
    return {"panoptic_quality": quality, "panoptic_reward": evaluate.load(vision_rl.metric_path("panoptic_reward"))}


def test_the_modules_give_what_the_functions_give(modules):
    rng = np.random.default_rng(1)
    pairs = [[(rng.integers(0, 4, (5, 6)), crowd(infos(s1=1, s2=20, s3=1), 3)) for _ in range(2)] for _ in range(4)]
    predictions, references = map(list, zip(*pairs, strict=True))
    as_dicts = [
        [{"segmentation": ids.tolist(), "segments_info": segments} for ids, segments in side]
        for side in (predictions, references)
    ]
    for arguments in ((predictions, references), as_dicts):
        given = dict(zip(("predictions", "references"), arguments, strict=True))
        assert modules["panoptic_quality"].compute(**given) == PanopticQuality(CATEGORIES)(predictions, references)
        result = modules["panoptic_reward"].compute(**given, false_positive_weight=0.5)
        assert result["rewards"] == PanopticReward(0.5)(predictions, references)
        assert result["reward"] == pytest.approx(np.mean(result["rewards"]))
    modules["panoptic_reward"].add(prediction=predictions[0], reference=references[0])
    assert modules["panoptic_reward"].compute()["rewards"] == PanopticReward()(predictions[:1], references[:1])
    assert modules["panoptic_reward"]._compute(predictions, references)["rewards"] == PanopticReward()(
        *map(list, zip(*pairs, strict=True))
    )


def some_pairs(count: int, size: tuple[int, int], seed: int = 1):
    """Predictions and references made of blocks, in the form that a model gives them."""
    rng = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        maps = [np.kron(rng.integers(0, 4, (6, 8)), np.ones(size, int)).astype(np.int32) for _ in range(count)]
        sides.append([(ids, crowd(infos(s1=1, s2=20, s3=1), 3)) for ids in maps])
    return sides


@pytest.mark.parametrize("name", ["panoptic_quality", "panoptic_reward"])
def test_images_that_are_added_are_those_that_are_computed(modules, name):
    predictions, references = some_pairs(4, (2, 3))
    whole = modules[name].compute(predictions=predictions, references=references)
    buffers = [(ids.copy(), segments) for ids, segments in predictions]
    modules[name].add_batch(predictions=buffers[:2], references=references[:2])
    buffers[0][0][:] = 0  # changing a buffer later does not change what was added
    modules[name].add(prediction=predictions[2], reference=references[2])
    assert modules[name].compute(predictions=predictions[3:], references=references[3:]) == whole
    with pytest.raises(ValueError, match="There is nothing to compute"):
        modules[name].compute()
    with pytest.raises(ValueError, match="There are 1 predictions and 0 references"):
        modules[name].compute(predictions=predictions[:1], references=[])


def test_arrow_rows_give_the_maps_back():
    for ids, segments in some_pairs(2, (2, 3))[0]:
        again, listed = as_pair(as_row((ids, segments)))
        assert np.array_equal(again, ids) and [info["id"] for info in listed] == [info["id"] for info in segments]


def test_several_processes_exchange_maps_as_bytes(tmp_path):
    predictions, references = some_pairs(4, (2, 3))
    options = {"num_process": 2, "experiment_id": "maps", "cache_dir": str(tmp_path)}
    load = functools.partial(evaluate.load, vision_rl.metric_path("panoptic_reward"), **options)
    main, other, result = load(process_id=0), load(process_id=1), {}

    def compute_on_main():
        result.update(main.compute(predictions=predictions[::2], references=references[::2]))

    first = threading.Thread(target=compute_on_main)
    first.start()
    assert other.compute(predictions=predictions[1::2], references=references[1::2]) is None
    first.join()
    assert sorted(result["rewards"]) == sorted(PanopticReward()(predictions, references))


def test_the_quality_module_wants_the_categories():
    with pytest.raises(ValueError, match="Say which categories there are"):
        evaluate.load(vision_rl.metric_path("panoptic_quality"))


@pytest.mark.parametrize("name", ["panoptic_quality", "panoptic_reward"])
def test_the_example_of_the_module_and_its_card_is_true(modules, name):
    lines = [line.strip() for line in modules[name].inputs_description.splitlines()]
    names, last = (
        {"evaluate": evaluate, "vision_rl": vision_rl},
        max(index for index, line in enumerate(lines) if line.startswith(">>>")),
    )
    for line in lines[:last]:
        if line.startswith(">>>"):
            exec(line[4:], names)
    assert repr(eval(lines[last][4:], names)) == lines[last + 1]
    card = Path(vision_rl.metric_path(name), "README.md").read_text()
    assert f"{lines[last][4:]}\n# {lines[last + 1]}" in card


# --- how it is counted ----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 13), st.integers(1, 13), st.integers(1, 4))
def test_runs_begin_where_a_map_changes_and_the_last_ends_with_it(seed, height, width, num_ids):
    rng = np.random.default_rng(seed)
    ids, others = rng.integers(0, num_ids, (2, height, width)).astype(np.int32)
    changes = [
        place
        for place in range(1, ids.size)
        if ids.flat[place] != ids.flat[place - 1] or others.flat[place] != others.flat[place - 1]
    ]
    assert run_bounds(ids, others).tolist() == [0, *changes, ids.size]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_values_are_found_among_ids_in_every_integer_type(dtype):
    ids = np.array([3, 200, 17, 0, 90])
    values = np.array([200, 3, 0, 91, 17, 5]).astype(dtype)
    assert places_of(values, ids).tolist() == [
        ids.tolist().index(value) if value in ids else -1 for value in values.tolist()
    ]
