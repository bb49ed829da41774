"""Boxes become tokens and come back; the checks of the data set before training."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import SIZE, image_processor, tiny_images
from transformers import AutoProcessor, DeiTImageProcessorPil, DonutImageProcessorPil, ViTImageProcessorPil

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.cli.building import with_options
from vision_rl.models import VisionDecoderConfig, VisionDecoderForCausalLM, vision_encoder_decoder, vit_encoder
from vision_rl.tasks import detection
from vision_rl.tasks.detection import AveragePrecisionReward, DetectionProcessor, RecallReward


def processor(**options) -> DetectionProcessor:
    return DetectionProcessor(image_processor(), **{"categories": ["cat", "dog", "cow"], "max_boxes": 4, **options})


def row(*boxes, size=(SIZE, SIZE), **extra) -> dict:
    """A row of boxes (x, y, w, h, category)."""
    objects = {"bbox": [list(box[:4]) for box in boxes], "category": [box[4] for box in boxes], **extra}
    return {"image": Image.new("RGB", size), "objects": objects}


def labels_of(p, *rows, seeds=None) -> list[list[int]]:
    batch = p(images=[r["image"] for r in rows], objects=[r["objects"] for r in rows], seeds=seeds)
    return batch["labels"].tolist()


def decoded(p, ids, size, **scores):
    length = len(ids)
    return p.decode_completions(
        [ids],
        per_token_logps=scores.get("per_token_logps", torch.zeros(1, length)),
        watched_logps=scores.get("watched_logps", torch.zeros(1, length, 2)),
        image_sizes=[size],
    )[0]


# --- boxes to tokens ------------------------------------------------------------------------------------------------


def test_a_box_is_y0_x0_y1_x1_class_confidence_with_1001_levels():
    p = processor(num_bins=1000, max_boxes=2)
    (ids,) = labels_of(p, row((10, 20, 30, 40, 1), size=(100, 200)))
    assert ids == [100 + 3, 100 + 3, 300 + 3, 400 + 3, 1004 + 1, 2] + [0] * 6
    assert p.vocab_size == 1004 + 3
    assert p.completion_length == 12


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"categories": {0: "cat", 1: "dog"}}, TypeError, r"list\(id2label.values"),
        ({"categories": "person"}, TypeError, "must be a list of names"),
        ({"categories": [{"id": 1, "name": "cat"}]}, TypeError, "their names, and category_ids are their ids"),
        ({"category_ids": [7]}, ValueError, r"an id for each of the 3 categories, .* they are \[7\]"),
        ({"category_ids": [7, 7, 8]}, ValueError, "all different"),
    ],
)
def test_categories_that_are_no_names_and_ids_that_do_not_fit_them_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        processor(**options)


def test_an_image_processor_that_cuts_or_pads_is_refused_where_it_would_move_boxes():
    whole = {"size": {"height": SIZE, "width": SIZE}}
    larger = {"size": {"height": SIZE + 8, "width": SIZE + 8}, "crop_size": whole["size"]}
    for resizing, option in (
        (DeiTImageProcessorPil(**larger), "do_center_crop"),
        (DonutImageProcessorPil(**whole, do_thumbnail=False, do_pad=True), "do_pad"),
    ):
        with pytest.raises(ValueError, match=f"has {option}: .* boxes would lie elsewhere"):
            DetectionProcessor(resizing, ["a"])
    DetectionProcessor(DeiTImageProcessorPil(**whole, crop_size=whole["size"]), ["a"])  # cuts nothing off
    DetectionProcessor(DeiTImageProcessorPil(**larger, do_center_crop=False), ["a"])


def test_categories_are_names_or_places():
    p = processor()
    assert labels_of(p, row((1, 2, 3, 4, "dog"))) == labels_of(p, row((1, 2, 3, 4, 1)))


def test_objects_may_be_a_list_or_say_label_for_category():
    p, usual = processor(), row((1, 2, 3, 4, 1), (5, 6, 7, 8, 2))
    listed = [{"bbox": [1, 2, 3, 4], "category": 1}, {"bbox": [5, 6, 7, 8], "category": 2}]
    labelled = {"bbox": usual["objects"]["bbox"], "label": [1, 2]}
    for objects in (listed, labelled):
        assert labels_of(p, {**usual, "objects": objects}) == labels_of(p, usual)
    assert labels_of(p, {**usual, "objects": []}) == [[0] * 24]
    with pytest.raises(ValueError, match=r"The objects have \['bbox', 'id'\]; they need"):
        labels_of(p, {**usual, "objects": {"bbox": [], "id": []}})


def test_the_order_is_random_by_the_seed_and_the_data_sets_own_without_one():
    p = processor()
    boxes = [(0, 0, 8, 8, 0), (8, 8, 8, 8, 1), (16, 16, 8, 8, 2)]
    classes = {tuple(np.array(labels_of(p, row(*boxes), seeds=[seed])[0])[4::6]) for seed in range(30)}
    assert len(classes) == 6  # all six orders of three boxes occur
    assert labels_of(p, row(*boxes), seeds=[5]) == labels_of(p, row(*boxes), seeds=[5])
    assert np.array(labels_of(p, row(*boxes))[0])[4::6].tolist() == [1004, 1005, 1006, 0]


def test_sorted_boxes_go_from_top_to_bottom_then_left_to_right():
    p = processor(box_order="sorted")
    (ids,) = labels_of(p, row((8, 8, 4, 4, 0), (16, 0, 4, 4, 1), (0, 0, 4, 4, 2)), seeds=[1])
    assert np.array(ids)[4::6].tolist() == [1006, 1005, 1004, 0]


def test_true_boxes_have_both_confidences_in_mle():
    p = processor()
    seen = [labels_of(p, row((0, 0, 8, 8, 0)), seeds=[seed])[0][5] for seed in range(200)]
    assert set(seen) == {1, 2} and 70 < sum(c == 1 for c in seen) < 130


def test_of_too_many_boxes_the_largest_are_learned():
    p = processor(max_boxes=2)
    (ids,) = labels_of(p, row((0, 0, 4, 4, 0), (0, 0, 20, 20, 1), (0, 0, 10, 10, 2)))
    assert np.array(ids)[4::6].tolist() == [1005, 1006]


def test_boxes_are_clipped_and_those_without_area_left_out():
    p = processor()
    ids = np.array(labels_of(p, row((-8, 0, 16, 40, 0), (5, 5, 0, 9, 1)))[0]).reshape(-1, 6)
    assert ids[0].tolist() == [3, 3, 1003, 253, 1004, 2]
    assert (ids[1:] == 0).all()


def test_crowds_are_not_learned_but_kept_for_the_metric():
    p = processor()
    r = row((0, 0, 8, 8, 0), (8, 8, 16, 16, 1), iscrowd=[0, 1], area=[50, 200])
    assert np.array(labels_of(p, r)[0])[4::6].tolist() == [1004, 0, 0, 0]
    (reference,) = p.get_references([r])
    assert reference["iscrowd"].tolist() == [False, True]
    assert reference["area"].tolist() == [50, 200]
    assert reference["boxes"].tolist() == [[0, 0, 8, 8], [8, 8, 24, 24]]
    assert len(reference["target_ids"]) == 6


def test_references_have_all_boxes_also_those_beyond_max_boxes():
    (reference,) = processor(max_boxes=1).get_references([row((0, 0, 8, 8, 0), (8, 8, 8, 8, 1))])
    assert len(reference["boxes"]) == 2 and len(reference["target_ids"]) == 12


def test_absent_boxes_weigh_what_the_option_says():
    p = processor(absent_weight=0.25)
    r = row((0, 0, 8, 8, 0))
    batch = p(images=[r["image"]], objects=[r["objects"]])
    assert batch["label_weights"].tolist() == [[1.0] * 6 + [0.25] * 18]
    assert "label_weights" not in processor()(images=[r["image"]], objects=[r["objects"]])


def test_a_letterboxed_image_keeps_its_shape():
    p = processor(resize="letterbox")
    wide = row((0, 0, 64, 32, 0), size=(64, 32))
    (ids,) = labels_of(p, wide)
    assert ids[:4] == [3, 3, 503, 1003]  # the frame has 64 x 64 of the image's pixels
    white = Image.new("RGB", (64, 32), "white")
    pixels = p(images=[white])["pixel_values"][0]
    assert (pixels[:, :16] > 0.9).all() and (pixels[:, 17:].abs() < 0.05).all()


# --- tokens to boxes ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encode_then_decode_returns_the_boxes_within_half_a_bin(data):
    resize = data.draw(st.sampled_from(["stretch", "letterbox"]))
    p = processor(num_bins=data.draw(st.sampled_from([64, 1000])), resize=resize)
    size = (data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300)))
    boxes = []
    for _ in range(data.draw(st.integers(0, 4))):
        x, y = (data.draw(st.floats(0, side - 2)) for side in size)
        boxes.append((x, y, data.draw(st.floats(1, size[0] - x)), data.draw(st.floats(1, size[1] - y)), 2))
    (ids,) = labels_of(p, row(*boxes, size=size))
    found = decoded(p, ids, size)
    true = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in boxes]).reshape(-1, 4)
    half_bin = np.tile(p._extent(size), 2) / p.num_bins / 2
    assert found["boxes"].shape == true.shape
    assert (np.abs(found["boxes"] - true) <= half_bin + 1e-9).all()
    assert found["labels"].tolist() == [2] * len(boxes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=40))
def test_any_ids_decode_to_valid_boxes(ids):
    found = decoded(processor(), ids, (90, 50))
    boxes = found["boxes"]
    assert len(boxes) == len(found["labels"]) == len(found["scores"]) <= len(ids) // 6
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and (boxes >= 0).all() and (boxes <= [90, 50, 90, 50]).all()
    assert ((found["labels"] >= 0) & (found["labels"] < 3)).all()


def test_the_confidence_of_a_box_is_high_against_low():
    p = processor()
    ids = [3, 3, 1003, 1003, 1004, 1, 3, 3, 503, 503, 1005, 2]
    watched = torch.zeros(1, 12, 2)
    watched[0, 5] = torch.tensor([0.2, 0.6]).log()
    watched[0, 11] = torch.tensor([0.3, 0.1]).log()
    assert decoded(p, ids, (32, 32), watched_logps=watched)["scores"].tolist() == pytest.approx([0.75, 0.25])


def test_the_likelihood_of_a_box_is_the_geometric_mean_of_its_tokens():
    p = processor(score="likelihood")
    logps = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 1.0]]).log()
    found = decoded(p, [3, 3, 1003, 1003, 1004, 2], (32, 32), per_token_logps=logps, watched_logps=None)
    assert found["scores"].tolist() == pytest.approx([0.5 ** (5 / 6)])


def test_batch_decode_gives_boxes_in_shares_of_the_frame():
    (found,) = processor().batch_decode([[3, 253, 1003, 503, 1005, 1]])
    assert found["boxes"].tolist() == [[0.25, 0, 0.5, 1]]
    assert found["labels"].tolist() == [1]


def test_classes_are_counted_without_crowds():
    rows = [row((0, 0, 8, 8, 2), (0, 0, 8, 8, "dog"), iscrowd=[0, 1]), row((0, 0, 8, 8, 2))]
    assert processor().count_classes(rows) == [0, 0, 2]


# --- saved, trained -------------------------------------------------------------------------------------------------


def test_it_is_saved_and_found_again(tmp_path):
    p = processor(num_bins=50, resize="letterbox", score="likelihood", absent_weight=0.5, box_order="sorted")
    p.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, DetectionProcessor)
    for name in ("categories", "num_bins", "max_boxes", "resize", "score", "absent_weight", "box_order"):
        assert getattr(again, name) == getattr(p, name), name
    r = row((3, 4, 8, 8, 1), size=(40, 30))
    assert labels_of(again, r) == labels_of(p, r)


def tiny_detector(p: DetectionProcessor):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = VisionDecoderForCausalLM(
        VisionDecoderConfig(vocab_size=p.vocab_size, max_position_embeddings=p.completion_length, **size)
    )
    return vision_encoder_decoder(
        vit_encoder(SIZE, patch_size=16, **size), decoder, decoder_start_token_id=0, pad_token_id=0
    )


def box_dataset(count: int = 16) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for image in tiny_images(count):
        boxes = [(*rng.integers(0, 16, 2).tolist(), 8, 8, int(rng.integers(3))) for _ in range(rng.integers(0, 4))]
        rows.append({**row(*boxes), "image": image})
    return rows


def options(tmp_path, **more) -> dict:
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        **more,
    }


@pytest.mark.parametrize("kind", ["recall", "map"])
def test_a_detector_is_trained_tuned_and_predicts_boxes_in_pixels(tmp_path, kind):
    p, dataset = processor(num_bins=32, absent_weight=0.1), box_dataset()
    model = tiny_detector(p)
    mle = VisionMLETrainer(model, VisionMLEConfig(**options(tmp_path)), train_dataset=dataset, processing_class=p)
    mle.train()
    reward = RecallReward(32, 3) if kind == "recall" else AveragePrecisionReward(32, 3, class_counts=[5, 2, 1])
    tuned = VisionRewardTrainer(
        model,
        reward,
        VisionRewardConfig(**options(tmp_path)),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=p,
    )
    tuned.train()
    log = next(entry for entry in tuned.state.log_history if "loss" in entry)
    assert log["completions/mean_length"] == p.completion_length == 24
    assert {"boxes/mean", "matches/mean", "duplicates/mean"} <= set(log)
    output = tuned.predict(dataset)
    assert all(
        found["scores"].min() >= 0 and found["boxes"].max() <= SIZE
        for found in output.predictions
        if len(found["boxes"])
    )
    assert output.label_ids[3]["boxes"].tolist() == [
        [x, y, x + w, y + h] for x, y, w, h in dataset[3]["objects"]["bbox"]
    ]


# --- bad input ------------------------------------------------------------------------------------------------------


def check(rows, p=None):
    (p or processor()).check_dataset(rows, {"image": "image", "objects": "objects"})


def test_an_unknown_category_names_its_row():
    with pytest.raises(ValueError, match="Row 1, column `objects`: The category 'horse' is not one of"):
        check([row((0, 0, 8, 8, "cat")), row((0, 0, 8, 8, "horse"))])
    with pytest.raises(ValueError, match="Row 0, .* category 3 is out of range: there are 3"):
        check([row((0, 0, 8, 8, 3))])


def test_missing_values_are_counted():
    with pytest.raises(ValueError, match="Row 0, column `objects`: 1 of 2 boxes in `bbox` are NaN"):
        check([row((0, 0, 8, 8, 0), (0, float("nan"), 8, 8, 0))])


def test_lengths_that_differ():
    with pytest.raises(ValueError, match="1 boxes in `bbox`, but 2 categories"):
        check([{"image": Image.new("RGB", (8, 8)), "objects": {"bbox": [[0, 0, 4, 4]], "category": [0, 1]}}])


def test_corners_in_place_of_width_and_height_are_suspected():
    with pytest.raises(
        ValueError, match="2 of 2 boxes in column `objects` leave their image.*are these x0, y0, x1, y1"
    ):
        check([row((16, 16, 30, 30, 0), (10, 12, 30, 31, 1))])


def test_too_many_boxes_flat_ones_and_those_that_leave_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        check([row(*[(0, 0, 8, 8, 0)] * 6), row((0, 0, 8, 8, 0), (0, 0, 0, 8, 0), (30, 0, 8, 8, 0))])
    assert "1 rows have more than max_boxes=4 boxes: of these rows, the smallest boxes (2 in all)" in caplog.text
    assert "1 boxes have no area" in caplog.text
    assert "1 of 9 boxes leave their image and are clipped" in caplog.text


def test_a_category_list_that_differs_from_the_data_sets():
    features = Features(
        {
            "image": ImageFeature(),
            "objects": {
                "bbox": List(List(Value("float32"))),
                "category": List(ClassLabel(names=["cat", "cow", "dog"])),
            },
        }
    )
    dataset = Dataset.from_list([row((0, 0, 8, 8, 0))], features=features)
    with pytest.raises(
        ValueError, match=r"The data set's categories are \['cat', 'cow', 'dog'\], but the processor's"
    ):
        check(dataset)
    check(dataset, processor(categories=["cat", "cow", "dog"]))


def named_rows(names: list[str], **fields) -> Dataset:
    """A row with a box of the first class; `fields` are types of further fields of its objects."""
    classes = {"category": List(ClassLabel(names=names))} if names else {}
    objects = {"bbox": List(List(Value("float32"))), **classes, **{name: List(kind) for name, kind in fields.items()}}
    values = {"bbox": [[0, 0, 8, 8]], **{name: [0] for name in objects if name != "bbox"}}
    rows = [{"image": Image.new("RGB", (SIZE, SIZE)), "objects": values}]
    return Dataset.from_list(rows, features=Features({"image": ImageFeature(), "objects": objects}))


def test_the_ids_of_a_file_belong_to_its_names_whatever_their_order(tmp_path):
    file = tmp_path / "categories.json"
    rows = named_rows(["bicycle", "car", "person"])
    for names in (["person", "bicycle", "car"], ["person", "dog", "bicycle", "car"]):
        content = [{"id": 7 + place, "name": name} for place, name in enumerate(names)]
        file.write_text(json.dumps({"categories": content}))
        p = detection.make_processor(detection.Options(categories_file=str(file)), image_processor(), rows)
        assert p.categories == ["bicycle", "car", "person"]
        assert p.category_ids == [7 + names.index(name) for name in p.categories]


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["cat", "car", "dog"],
            "no id for 2 of the data's 3 categories: 'bicycle', 'person'. It has 'cat', 'car', 'dog'",
        ),
        (["bicycle", "car"], "no id for 1 of the data's 3 categories: 'person'"),
        (["bicycle", "car", "person", "car"], "two categories called 'car'"),
    ],
)
def test_a_file_that_lacks_a_name_of_the_rows_or_has_one_twice_is_refused(names, message, tmp_path):
    file = tmp_path / "categories.json"
    content = [{"id": place, "name": name} for place, name in enumerate(names)]
    file.write_text(json.dumps({"categories": content}))
    with pytest.raises(ValueError, match=message):
        options = detection.Options(categories_file=str(file))
        detection.make_processor(options, image_processor(), named_rows(["bicycle", "car", "person"]))


@pytest.mark.parametrize("number", ["int64", "float32"])
def test_names_of_another_field_than_the_one_that_classes_are_read_from_are_refused(number):
    label = ClassLabel(names=["cat", "cow", "dog"])
    message = "`category`, from which they are read, has numbers without names, and the names are those of `label`"
    with pytest.raises(ValueError, match=message):
        check(named_rows([], category=Value(number), label=label), processor(categories=label.names))
    check(named_rows([], label=label, category_id=Value(number)), processor(categories=label.names))
    rows = named_rows([], category=Value("string"), label=label).map(
        lambda row: {"objects": {**row["objects"], "category": ["dog"]}}
    )
    p = processor(categories=label.names)
    check(rows, p)  # texts tell what they are themselves
    assert p.get_references([rows[0]])[0]["labels"].tolist() == [2]


@pytest.mark.parametrize(
    "wrong",
    [{"categories": []}, {"categories": ["a", "a"]}, {"num_bins": 0}, {"resize": "crop"}, {"absent_weight": -1}],
)
def test_options_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        processor(**wrong)


def test_an_image_processor_without_a_fixed_frame():
    with pytest.raises(ValueError, match="boxes need a fixed size"):
        DetectionProcessor(ViTImageProcessorPil(size={"shortest_edge": 32}), ["cat"])


# --- what `generate` returns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [[], [0]])
@pytest.mark.parametrize("absent", [0, 1])
def test_an_answer_that_was_cut_anywhere_is_read_up_to_its_last_whole_box(start, absent):
    boxes = [[253, 3, 1003, 503, 1005, 1], [103, 203, 303, 403, 1004, 2]]
    ids = [0] * 6 * absent + boxes[0] + boxes[1]
    whole = processor().batch_decode([ids])[0]
    assert len(whole["boxes"]) == 2
    for length in range(6 * absent + 1, len(ids) + 1):
        (found,) = processor().batch_decode([start + ids[:length]])
        count = length // 6 - absent
        assert found["boxes"].tolist() == whole["boxes"][:count].tolist(), length
        assert found["labels"].tolist() == whole["labels"][:count].tolist()


@pytest.mark.parametrize("ids", [[], [0], [0] * 6, [0] * 7, [0] * 12])
def test_an_answer_without_boxes_is_read_as_none(ids):
    assert processor().batch_decode([ids])[0]["boxes"].shape == (0, 4)


def test_as_many_rows_of_everything_are_wanted():
    p, images = processor(), tiny_images(2)
    with pytest.raises(ValueError, match="There are 2 images but 1 objects"):
        p(images=images, objects=[{"bbox": [], "category": []}])
    objects = [{"bbox": [[1, 1, 8, 8]], "category": [0]}] * 2
    arrays, lists = (p(images=images, objects=objects, seeds=seeds)["labels"] for seeds in (np.array([1, 2]), [1, 2]))
    assert torch.equal(arrays, lists)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"stop_threshold": 7}, "stop_threshold"),
        ({"scale_jitter": [2.0, 0.3]}, "scale_jitter must be a range"),
        ({"absent_weight": -1}, "absent_weight must not be negative"),
    ],
)
def test_options_of_a_saved_processor_are_checked_as_those_of_a_new_one(wrong, told):
    saved = processor(flip=True, category_ids=[7, 8, 9])
    assert with_options(saved, detection.Options(stop_threshold=0.5)).stop_threshold == 0.5
    with pytest.raises(ValueError, match=told):
        with_options(saved, detection.Options(**wrong))


def test_a_saved_processor_takes_the_ids_of_the_file_that_the_options_name(tmp_path):
    saved, files = processor(category_ids=[7, 8, 9]), {}
    for name, ids in {"train": [7, 8, 9], "other": [0, 1, 2], "same": [2, 0, 1]}.items():
        names = sorted(saved.categories, key=lambda each: ids[saved.categories.index(each)])
        content = [{"id": place, "name": each} for place, each in zip(sorted(ids), names, strict=True)]
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"images": [], "annotations": [], "categories": content}))
    train, other, same = map(str, files.values())

    def ids_with(**named: str) -> list:
        return with_options(saved, detection.Options(**named)).category_ids

    assert ids_with() == ids_with(annotation_file=train) == ids_with(eval_annotation_file="absent.json") == [7, 8, 9]
    assert ids_with(eval_annotation_file=other) == [0, 1, 2] and ids_with(eval_annotation_file=same) == [2, 0, 1]
    assert ids_with(annotation_file=train, eval_annotation_file=other, categories_file=other) == [0, 1, 2]
    assert saved.category_ids == [7, 8, 9]
    with pytest.raises(ValueError, match="other ids for the same categories"):
        ids_with(annotation_file=train, eval_annotation_file=other)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        ids_with(categories_file="absent.json")


def test_what_generate_returns_is_read_with_its_start_token():
    ids = [3, 253, 1003, 503, 1005, 1] + [0] * 18
    bare, started = processor().batch_decode([ids]), processor().batch_decode(torch.tensor([[0, *ids]]))
    for found in (*bare, *started, processor().decode([0, *ids])):
        assert found["boxes"].tolist() == [[0.25, 0, 0.5, 1]] and found["labels"].tolist() == [1]
    (in_pixels,) = processor().batch_decode([[0, *ids]], image_sizes=[(80, 40)])
    assert in_pixels["boxes"].tolist() == [[20, 0, 40, 40]]
    with pytest.raises(TypeError, match="skip_special_tokens"):
        processor().batch_decode([ids], skip_special_tokens=True)
    with pytest.raises(TypeError, match="texts"):
        processor()(images=tiny_images(1), texts=["a"])


@pytest.mark.parametrize("score", ["confidence", "likelihood"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_post_processing_gives_what_the_trainer_predicts(tmp_path, score, resize):
    p, dataset = processor(num_bins=32, score=score, resize=resize), box_dataset(5)
    sizes = [(SIZE + 8 * i, SIZE) for i in range(5)]
    dataset = [{**row, "image": row["image"].resize(size)} for row, size in zip(dataset, sizes, strict=True)]
    model = tiny_detector(p)
    torch.nn.init.normal_(model.decoder.get_output_embeddings().weight, std=0.5)
    trainer = VisionMLETrainer(model, VisionMLEConfig(**options(tmp_path)), eval_dataset=dataset, processing_class=p)
    predicted = trainer.predict(dataset).predictions
    trainer.save_model(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "cow"} and again.config.label2id["cow"] == 2
    inputs = p(images=[row["image"] for row in dataset], return_tensors="pt")
    outputs = again.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    found = p.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(h, w) for w, h in sizes])
    for one, other in zip(found, predicted, strict=True):
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_allclose(one[name].numpy(), other[name], atol=1e-4)
    few = p.post_process_object_detection(
        outputs, threshold=0.5, target_sizes=torch.tensor([(h, w) for w, h in sizes])
    )
    assert all((image["scores"] > 0.5).all() for image in few)
    in_shares = p.post_process_object_detection(outputs)
    assert all(image["boxes"].numel() == 0 or image["boxes"].max() <= 1 for image in in_shares)
    with pytest.raises(ValueError, match="return_dict_in_generate=True, output_scores=True"):
        p.post_process_object_detection(again.generate(**inputs))


def test_post_processing_scores_what_beams_have_found_as_reading_it_does():
    p = processor(num_bins=32)
    model = tiny_detector(p)
    torch.nn.init.normal_(model.decoder.get_output_embeddings().weight, std=0.5)
    inputs = p(images=tiny_images(3))
    options = {"return_dict_in_generate": True, "output_logits": True, "logits_processor": p.logits_processor}
    outputs = model.generate(**inputs, num_beams=3, max_new_tokens=p.completion_length, **options)
    ids = outputs.sequences
    with torch.no_grad():
        read = model(**inputs, decoder_input_ids=ids[:, :-1]).logits
    as_read = SimpleNamespace(sequences=ids, logits=read.unbind(1))
    found, expected = (p.post_process_object_detection(each, threshold=-1.0) for each in (outputs, as_read))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)


def test_one_image_is_a_batch_of_one(tmp_path):
    image = tiny_images(1)[0]
    image.save(tmp_path / "a.png")
    whole = processor()(images=[image])["pixel_values"]
    for one in (image, str(tmp_path / "a.png"), np.asarray(image), np.asarray(image)[None]):
        assert torch.equal(processor()(images=one)["pixel_values"], whole)
    with pytest.raises(ValueError, match="make torch tensors"):
        processor()(images=image, return_tensors="np")
