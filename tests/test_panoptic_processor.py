"""Panoptic rows become dense targets, codes and references; the loader; the pictures."""

import json
import logging
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from recorded import golden
from tiny import SIZE, image_processor, tiny_images, tiny_model
from torch import nn
from torch.nn.functional import one_hot
from transformers import AutoProcessor, ViTImageProcessorPil

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.cli.building import with_options
from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.data.panoptic import load_coco_panoptic, panoptic_categories
from vision_rl.tasks import panoptic
from vision_rl.tasks.panoptic import (
    PanopticProcessor,
    PanopticQuality,
    PanopticReward,
    draw,
    panoptic_quality,
    read_coco_panoptic,
    resized,
    save_coco_panoptic,
)
from vision_rl.tasks.panoptic.drawing import category_colour
from vision_rl.tasks.panoptic.processing import canonical_instances
from vision_rl.tasks.panoptic.segments import ids_from_rgb, read_segments, rgb_from_ids


SHARED = Path(__file__).resolve().parents[2] / "shared"
CATEGORIES = [
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
]


def processor(**options) -> PanopticProcessor:
    return PanopticProcessor(
        image_processor(), **{"categories": CATEGORIES, "max_instances": 6, "num_codes": 8, "code_len": 4, **options}
    )


def row(ids: np.ndarray, **extra) -> dict:
    """A row with a random image of the map's size. Its segments take the categories in turn."""
    present = [int(i) for i in np.unique(ids) if i]
    infos = [{"id": i, "category_id": CATEGORIES[place % 3]["id"], "iscrowd": 0} for place, i in enumerate(present)]
    pixels = np.random.default_rng(0).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "segmentation": ids, "segments_info": infos, **extra}


def test_a_map_may_be_a_tensor_as_datasets_formats_a_picture():
    ids = quarters()
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    as_tensor = {**row(ids), "segmentation": torch.from_numpy(np.moveaxis(colours, -1, 0).copy())}
    for ours, expected in zip(dense(processor(), as_tensor), dense(processor(), row(ids)), strict=True):
        assert ours.equal(expected)


@pytest.mark.parametrize("value", [float("inf"), [7], "7", None, 1.5, True])
def test_an_id_that_is_no_whole_number_names_its_segment(value):
    bad = row(quarters())
    bad["segments_info"][1]["id"] = value
    with pytest.raises(ValueError, match="`id` of segment 1 is .* whole number"):
        dense(processor(), bad)


def quarters(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Void at the upper left, then three segments whose ids fall in reading order."""
    ids = np.zeros((height, width), int)
    ids[: height // 2, width // 2 :] = 70000
    ids[height // 2 :, : width // 2] = 300
    ids[height // 2 :, width // 2 :] = 2
    return ids


def dense(p: PanopticProcessor, *rows: dict, seeds=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    columns = {key: [r[key] for r in rows] for key in ("segmentation", "segments_info")}
    batch = p.dense([r["image"] for r in rows], seeds, **columns)
    return batch["pixel_values"], batch["targets"]["semantics"], batch["targets"]["instances"]


# --- dense targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(3))
def test_labels_and_their_canonical_order_equal_the_reference(case):
    values = golden("panoptic_labels.npz")
    png, ids, classes = (values[f"c{case}_{key}"] for key in ("panoptic_png", "ids", "class"))
    categories = [{"id": 100 + c, "name": str(c), "isthing": 1} for c in range(133)]
    infos = [{"id": i, "category_id": 100 + c} for i, c in zip(ids.tolist(), classes.tolist(), strict=True)]
    height, width = png.shape[:2]

    p = PanopticProcessor(ViTImageProcessorPil(size={"height": height, "width": width}), categories)
    segments = read_segments((ids_from_rgb(png), infos))
    assert (np.stack(p._labels(segments, segments.map), -1) == values[f"c{case}_labels"]).all()
    for size, expected in (((height, width), "canonical"), ((32, 32), "resized_canonical")):
        p = PanopticProcessor(ViTImageProcessorPil(size=dict(zip(("height", "width"), size, strict=True))), categories)
        image = Image.new("RGB", (width, height))
        _, semantics, instances = dense(p, {"image": image, "segmentation": png, "segments_info": infos})
        assert (torch.stack([semantics, instances], -1)[0].numpy() == values[f"c{case}_{expected}"]).all()


def test_semantics_are_places_of_categories_and_instances_go_from_top_to_bottom():
    pixels, semantics, instances = dense(processor(), row(quarters(64, 48)))
    assert pixels.shape == (1, 3, SIZE, SIZE) and semantics.shape == (1, SIZE, SIZE)
    assert semantics.dtype == instances.dtype == torch.long
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert [int(semantics[0][c]) for c in corners] == [0, 3, 2, 1]  # of the ids 2, 300 and 70000 in this order
    assert [int(instances[0][c]) for c in corners] == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=30, max_size=30), st.permutations(range(1, 7)))
def test_the_canonical_order_does_not_depend_on_the_numbers_before(flat, renaming):
    instances = np.array(flat).reshape(5, 6)
    canonical = canonical_instances(instances)
    assert ((canonical == 0) == (instances == 0)).all()
    count = len(np.unique(instances[instances > 0]))
    assert np.unique(canonical[canonical > 0]).tolist() == list(range(1, count + 1))
    keys = [np.argwhere(canonical == n).mean(0) @ [5, 1] for n in range(1, count + 1)]
    assert (np.diff(keys) > -1e-9).all()
    if len({round(key, 9) for key in keys}) == count:  # no ties between centres
        renamed = np.array([0, *renaming])[instances]
        assert (canonical_instances(renamed) == canonical).all()
    assert (canonical_instances(canonical) == canonical).all()


def test_the_forms_of_a_map_mean_the_same():
    usual = row(quarters())
    colours = rgb_from_ids(quarters())
    of_lists = {key: [info[key] for info in usual["segments_info"]] for key in ("id", "category_id", "iscrowd")}
    _, semantics, instances = dense(processor(), usual)
    for change in (
        {"segmentation": colours},
        {"segmentation": Image.fromarray(colours)},
        {"segmentation": Image.fromarray(quarters().astype(np.int32))},
        {"segmentation": quarters().tolist()},
        {"segments_info": of_lists},
        {"segments_info": usual["segments_info"][::-1]},
    ):
        _, same_semantics, same_instances = dense(processor(), {**usual, **change})
        assert (same_semantics == semantics).all() and (same_instances == instances).all()


def test_instances_beyond_the_channels_are_not_learned_but_their_class_is():
    ids = np.repeat(np.arange(1, 9), 4)[:, None].repeat(SIZE, 1)  # eight segments in stripes
    _, semantics, instances = dense(processor(), row(ids))  # six channels; channel 0 is void
    assert instances[0, ::4, 0].tolist() == [1, 2, 3, 4, 5, -1, -1, -1]
    assert semantics[0, ::4, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


def test_crowds_are_learned_as_other_segments():
    r = row(quarters())
    crowded = {**r, "segments_info": [{**info, "iscrowd": 1} for info in r["segments_info"]]}
    assert all((a == b).all() for a, b in zip(dense(processor(), r), dense(processor(), crowded), strict=True))


def pair_of_pixels(p: PanopticProcessor, seeds) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and map of rows in which both show the same: the grey values are the ids."""
    ids = np.arange(1, 17).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    r = row(ids, image=Image.fromarray(ids.astype(np.uint8) * 15))
    r["image"] = r["image"].convert("RGB")
    categories = [{"id": i, "name": str(i), "isthing": 1} for i in range(1, 17)]
    p = processor(categories=categories, flip=p.flip, crop_area=p.crop_area)
    r["segments_info"] = [{"id": i, "category_id": i} for i in range(1, 17)]
    pixels, semantics, _ = dense(p, *[r] * len(seeds), seeds=seeds)
    return (pixels[:, 0] * 0.5 + 0.5) * 255 / 15, semantics


def test_image_and_map_are_mirrored_together_half_of_the_time():
    grey, semantics = pair_of_pixels(processor(), seeds=range(60))
    assert (grey - semantics).abs().max() < 0.01
    mirrored = (semantics[:, 0, 0] == 4).float().mean()
    assert 0.3 < mirrored < 0.7
    _, semantics = pair_of_pixels(processor(flip=False), seeds=range(20))
    assert (semantics[:, 0, 0] == 1).all()


def test_image_and_map_are_cut_out_together():
    grey, semantics = pair_of_pixels(processor(crop_area=(0.05, 1.0)), seeds=range(40))
    near = (grey - semantics).abs() < 0.5
    assert near.float().mean() > 0.8  # the image is interpolated at the borders of segments
    shares = torch.tensor([len(torch.unique(one)) / 16 for one in semantics])
    assert shares.min() < 0.3 and shares.max() == 1


def test_the_seed_alone_decides_and_none_leaves_the_image_as_it_is():
    p = processor(crop_area=(0.3, 0.6))
    r = row(quarters())
    first, again = dense(p, r, r, seeds=[3, 4]), dense(p, r, r, seeds=[4, 3])
    for a, b in zip(first, again, strict=True):
        assert (a[0] == b[1]).all() and (a[1] == b[0]).all()
    assert not (first[0][0] == first[0][1]).all()
    classes = dict(zip([0, 2, 300, 70000], [0, 1, 2, 3], strict=True))  # by segment id
    assert (dense(p, r)[1][0].numpy() == np.vectorize(classes.get)(quarters())).all()


# --- codes ----------------------------------------------------------------------------------------------------------


def test_labels_are_codes_plus_one_without_mirroring():
    p = processor()
    images = tiny_images(1)
    batch = p(images=images * 8, seeds=range(8), codes=[[0, 7, 3, 3]] * 8)
    assert batch["labels"].tolist() == [[1, 8, 4, 4]] * 8
    assert (batch["pixel_values"] == p(images=images)["pixel_values"]).all()
    assert "labels" not in p(images=images)
    assert (p.vocab_size, p.completion_length, p.num_classes) == (9, 4, 4)
    assert p.target_columns == ("segmentation", "segments_info")


def test_stage_two_cannot_learn_from_maps():
    r = row(quarters())
    with pytest.raises(ValueError, match="let stage I turn them into codes"):
        processor()(images=[r["image"]], segmentation=[r["segmentation"]], segments_info=[r["segments_info"]])


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, np.array, np.uint8])
def test_codes_may_be_lists_arrays_or_tensors(form):
    codes = [form([0, 7, 3, 3]), form([1, 2, 3, 4])]
    labels = processor()(images=tiny_images(2), codes=codes)["labels"]
    assert labels.tolist() == [[1, 8, 4, 4], [2, 3, 4, 5]] and labels.dtype == torch.long


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([0, 1, 2], r"codes must be 4 integers \(code_len\); they have the dtype int64 and the shape \(3,\)"),
        ([[0, 1], [2, 3]], r"the dtype int64 and the shape \(2, 2\)"),
        ([], "codes must be 4 integers"),
        (None, r"the dtype object and the shape \(\)"),
        ([0.0, 1.0, 2.0, 3.0], r"the dtype float64 and the shape \(4,\)"),
        (torch.tensor([0.0, 1, 2, 3]), r"the dtype float32 and the shape \(4,\)"),
        ([True, False, True, True], r"the dtype bool and the shape \(4,\)"),
        (["0", "1", "2", "3"], r"codes must be 4 integers"),
        ([0, 1, 2, 8], r"from 0 to 7 \(num_codes - 1\), but they go from 0 to 8. Are these token ids\?"),
        ([-1, 0, 0, 0], "they go from -1 to 0"),
    ],
)
def test_codes_that_cannot_be(codes, message):
    with pytest.raises(ValueError, match=message):
        processor()(images=tiny_images(2), codes=[[0, 1, 2, 3], codes])


def test_codes_alone_are_no_map():
    with pytest.raises(NotImplementedError, match="completion_decoder"):
        processor().batch_decode([[1, 2, 3, 4]])


# --- references, trainers -------------------------------------------------------------------------------------------


def test_references_have_the_images_size_and_the_crowds():
    r = row(quarters(64, 48))
    r["segments_info"][1] |= {"iscrowd": True, "isthing": True}
    ((ids, segments_info),) = processor().get_references([r])
    assert (ids == quarters(64, 48)).all()
    assert segments_info[1] == {"id": 300, "category_id": 7, "iscrowd": 1}


def as_logits(semantics: torch.Tensor, instances: torch.Tensor, p: PanopticProcessor) -> dict[str, torch.Tensor]:
    return {
        "semantics": one_hot(semantics, p.num_classes).float(),
        "instances": one_hot(instances, p.max_instances).float(),
    }


def test_dense_targets_that_are_found_again_earn_the_whole_reward():
    p, r = processor(), row(quarters(64, 48))
    pixel_values, semantics, instances = dense(p, r)
    (found,) = p.from_dense(as_logits(semantics, instances, p), pixel_values)
    (reference,) = p.get_references([r])
    assert found[0].shape == (SIZE, SIZE)
    assert PanopticReward().score(found, reference) == 3
    assert PanopticQuality(CATEGORIES)([found], [reference])["pq"] == 1
    assert panoptic_quality([resized(found, (64, 48))], [reference], CATEGORIES)["All"]["pq"] == 1


def test_small_instances_become_void_if_wanted():
    p = processor(min_fraction=0.3)
    pixel_values, semantics, instances = dense(p, row(quarters()))
    ((ids, segments_info),) = p.from_dense(as_logits(semantics, instances, p), pixel_values)
    assert segments_info == [] and (ids == 0).all()


class FourCodes(nn.Module):
    """Takes the place of stage I: the four codes of an image are the classes of its quarters."""

    def __init__(self, processor):
        super().__init__()
        self.processor = processor

    def forward(self, completion_ids, batch):
        classes = (completion_ids.flatten(0, 1) - 1).remainder(4).unflatten(1, (2, 2))  # (N, 2, 2)
        classes = classes.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return self.processor.from_dense(as_logits(classes, classes, self.processor), batch["pixel_values"])


def test_a_model_that_writes_codes_is_trained_tuned_and_measured(tmp_path):
    p = processor()
    model = tiny_model(vocab_size=p.vocab_size, end=None, length=4)
    rows = [row(quarters(64, 48), codes=[0, 3, 2, 1]) for _ in range(8)]
    options = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    parts = {
        "train_dataset": rows,
        "eval_dataset": rows,
        "processing_class": p,
        "compute_metrics": PanopticQuality(p.categories),
        "completion_decoder": FourCodes(p),
    }
    mle = VisionMLETrainer(model, VisionMLEConfig(**options), **parts)
    mle.train()
    assert {"eval_loss", "eval_pq"} <= set(mle.evaluate())
    tuned = VisionRewardTrainer(model, PanopticReward(), VisionRewardConfig(**options), **parts)
    tuned.train()
    log = next(entry for entry in tuned.state.log_history if "loss" in entry)
    assert log["completions/mean_length"] == 4
    assert {"matches/mean", "matches/iou", "false_positives/mean", "rewards/PanopticReward/mean"} <= set(log)
    metrics = tuned.evaluate()
    assert {"eval_pq", "eval_pq_things", "eval_rq_stuff", "eval_reward"} <= set(metrics)
    assert "eval_per_class_pq" not in metrics
    predicted = tuned.predict(rows)
    assert predicted.label_ids[0][0].shape == (64, 48)
    pairs = predicted.predictions, predicted.label_ids
    assert metrics["eval_pq"] == predicted.metrics["test_pq"] == PanopticQuality(p.categories)(*pairs)["pq"]


def test_an_evaluation_keeps_no_maps(tmp_path):
    p, rows = processor(), [row(quarters(64, 48)) for _ in range(5)]
    seen = []

    class Watched(VisionRewardTrainer):
        def _evaluation_metrics(self, records):
            seen.extend(records)
            return super()._evaluation_metrics(records)

    trainer = Watched(
        tiny_model(vocab_size=p.vocab_size, end=None, length=4),
        PanopticReward(),
        VisionRewardConfig(str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True),
        eval_dataset=rows,
        processing_class=p,
        compute_metrics=PanopticQuality(p.categories),
        completion_decoder=FourCodes(p),
    )
    assert {"eval_pq", "eval_reward"} <= set(trainer.evaluate())
    assert len(seen) == 5 and not any({"completion", "reference"} & set(record) for record in seen)
    assert len(pickle.dumps(seen[0])) < 48 * 64


def test_a_data_set_with_a_transform_is_checked_as_its_rows_come():
    given = [row(quarters(64, 48)) for _ in range(3)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "segmentation": datasets.Image(),
            "segments_info": datasets.List({key: datasets.Value("int64") for key in ("id", "category_id", "iscrowd")}),
        }
    )
    rows = [{**one, "segmentation": Image.fromarray(rgb_from_ids(one["segmentation"]))} for one in given]
    dataset = datasets.Dataset.from_list(rows, features=features)
    columns = {name: name for name in features}

    def brightened(batch):
        return {**batch, "image": [image.point(lambda value: value // 2) for image in batch["image"]]}

    def unlisted(batch):
        return {**batch, "segments_info": [infos[1:] for infos in batch["segments_info"]]}

    processor().check_dataset(dataset.with_transform(brightened), columns)
    with pytest.raises(ValueError, match="Row 0, column `segmentation`: 1 segment ids of the map are not in"):
        processor().check_dataset(dataset.with_transform(unlisted), columns)


# --- saved ----------------------------------------------------------------------------------------------------------


def test_it_is_saved_and_found_again_with_its_categories(tmp_path):
    p = processor(flip=False, crop_area=(0.1, 0.9))
    p.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, PanopticProcessor)
    for name in (
        "categories",
        "max_instances",
        "num_codes",
        "code_len",
        "flip",
        "crop_area",
        "min_fraction",
        "model_size",
    ):
        assert getattr(again, name) == getattr(p, name), name
    r = row(quarters(40, 30))
    assert all((a == b).all() for a, b in zip(dense(p, r, seeds=[1]), dense(again, r, seeds=[1]), strict=True))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"categories": []}, "categories must be at least one, with different ids"),
        ({"categories": CATEGORIES[:1] * 2}, "categories must be at least one, with different ids"),
        ({"categories": [{"id": 1, "name": "a"}]}, "A category needs `id`, `name` and `isthing`"),
        ({"max_instances": 1}, "max_instances must be at least 2"),
        ({"num_codes": 0}, "num_codes"),
        ({"crop_area": (0.5, 0.1)}, "crop_area must be a range"),
        ({"min_fraction": 1}, "min_fraction must be a share"),
    ],
)
def test_options_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        processor(**wrong)


def test_an_image_processor_without_a_fixed_frame():
    with pytest.raises(ValueError, match="maps need a fixed size"):
        PanopticProcessor(ViTImageProcessorPil(size={"shortest_edge": 32}), CATEGORIES)


# --- bad rows -------------------------------------------------------------------------------------------------------


def check(rows, p=None):
    columns = {"image": "image", "segmentation": "segmentation", "segments_info": "segments_info"}
    (p or processor()).check_dataset(rows, columns)


GOOD = row(quarters())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"segments_info": GOOD["segments_info"][1:]},
            "Row 1, column `segmentation`: 1 segment ids of the map are not in segments_info; the first is 2",
        ),
        (
            {"segments_info": [*GOOD["segments_info"], {"id": 9, "category_id": 5}]},
            "Row 1, column `segments_info`: 1 segments have no pixel in the map; the first is 9",
        ),
        (
            {"segments_info": [{**info, "category_id": 6} for info in GOOD["segments_info"]]},
            "Row 1, column `segments_info`: 3 segments have a category_id .* the first is 6",
        ),
        (
            {"image": Image.new("RGB", (20, 32))},
            r"Row 1, .*: The map has 32 x 32 pixels .*, but its image has 20 x 32",
        ),
        ({"segmentation": Image.fromarray(rgb_from_ids(quarters())).convert("P")}, "Row 1, .* picture with a palette"),
        ({"segmentation": quarters() / 2}, "Row 1, .* of integers"),
        ({"segments_info": GOOD["segments_info"] * 2}, "Row 1, .* ids of an image's segments must differ"),
    ],
)
def test_a_look_at_the_data_set_names_the_row(change, message):
    check([GOOD, GOOD])
    with pytest.raises(ValueError, match=message):
        check([GOOD, {**GOOD, **change}])


def test_more_segments_than_instance_channels_are_counted(caplog):
    ids = np.repeat(np.arange(1, 9), 4)[:, None].repeat(SIZE, 1)
    with caplog.at_level(logging.WARNING):
        check([GOOD, row(ids)])
    assert "1 rows have more than max_instances - 1 = 5 segments: 3 segments of them" in caplog.text


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two images. One has a map, whose ids use all three bytes."""
    ids = quarters(10, 12)
    for name, pixels in (("images/1.jpg", np.zeros((10, 12, 3))), ("images/2.jpg", np.zeros((10, 12, 3)))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "maps").mkdir()
    Image.fromarray(rgb_from_ids(ids)).save(tmp_path / "maps" / "2.png")
    infos = [{"id": i, "category_id": c, "area": 30, "bbox": [0, 0, 1, 1]} for i, c in ((2, 5), (300, 7), (70000, 90))]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 2, "file_name": "2.png", "segments_info": infos}],
        "categories": [{**category, "supercategory": "x"} for category in CATEGORIES[::-1]],
    }
    return tmp_path, content


def load(folder, **change) -> datasets.Dataset:
    path, content = folder
    (path / "panoptic.json").write_text(json.dumps({**content, **change}))
    return load_coco_panoptic(path / "images", path / "maps", path / "panoptic.json")


def test_the_loader_keeps_every_id_and_leaves_out_images_without_a_map(folder):
    dataset = load(folder)
    assert dataset["image_id"] == [2]
    assert (ids_from_rgb(np.asarray(dataset[0]["segmentation"])) == quarters(10, 12)).all()
    assert dataset[0]["segments_info"][2] == {"id": 70000, "category_id": 90, "iscrowd": 0}
    assert panoptic_categories(folder[0] / "panoptic.json") == CATEGORIES
    check(dataset)
    assert dense(processor(), dataset[0])[1].unique().tolist() == [0, 1, 2, 3]


def test_what_is_wrong_with_a_file_is_counted(folder):
    annotation = folder[1]["annotations"][0]
    infos = annotation["segments_info"]
    for change, message in (
        (
            {"annotations": [{**annotation, "image_id": 3}]},
            "1 of 1 maps have an image that is not in the file; the first: 2.png with image_id 3",
        ),
        (
            {"annotations": [annotation] * 2},
            "1 of 2 maps are of an image that already has a map; the first: 2.png of image 2",
        ),
        ({"images": [folder[1]["images"][1]] * 2}, "1 images with the id of another image"),
        (
            {"categories": CATEGORIES[:2]},
            "1 of 1 maps have a segment of a category that is not in the file; the first: image 2, segment",
        ),
        (
            {"annotations": [{**annotation, "segments_info": [*infos, infos[0]]}]},
            "1 of 1 maps have two segments with the same id; the first: of image 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder, **change)
    (folder[0] / "maps" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 maps are not there; the first: .*2\.png"):
        load(folder)


def test_photos_may_share_a_map_but_maps_no_photo(folder):
    annotation = folder[1]["annotations"][0]
    both = [annotation, {**annotation, "image_id": 1}]
    assert load(folder, annotations=both)["image_id"][:] == [1, 2]
    images = [{"id": 1, "file_name": "2.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    with pytest.raises(ValueError, match="2 of 2 images share their file with another"):
        load(folder, annotations=both, images=images)
    assert load(folder, images=images)["image_id"][:] == [2]  # the other has no map, and is no row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "sky"}, r"'sky' \(isthing 1\) in .*val.json, but the processor's is 'cat' \(isthing 1\)"),
        ({"isthing": 0}, r"'cat' \(isthing 0\) in .*val.json, but the processor's is 'cat' \(isthing 1\)"),
    ],
)
def test_a_file_that_means_another_category_by_an_id_is_refused_for_new_and_saved_processors(folder, change, told):
    rows, path = load(folder), folder[0]
    options = panoptic.Options(
        annotation_file=str(path / "panoptic.json"), eval_annotation_file=str(path / "val.json")
    )
    for categories in (CATEGORIES[::-1], CATEGORIES[:2]):
        (path / "val.json").write_text(json.dumps({**folder[1], "categories": categories}))
        p = panoptic.make_processor(options, image_processor(), rows)
        assert with_options(p, options).categories == CATEGORIES
    (path / "val.json").write_text(json.dumps({**folder[1], "categories": [{**CATEGORIES[0], **change}]}))
    with pytest.raises(ValueError, match=f"The category of id 5 is {told}"):
        panoptic.make_processor(options, image_processor(), rows)
    with pytest.raises(ValueError, match=f"The category of id 5 is {told}"):
        with_options(p, panoptic.Options(eval_annotation_file=options.eval_annotation_file))


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"id": 300}, "have a segment with no `category_id`"),
        ({"category_id": 5}, "have a segment with no `id`"),
        ({"id": 0, "category_id": 5}, "have a segment with an `id` that is not from 1 to 16777215"),
        ({"id": 2**24, "category_id": 5}, "have a segment with an `id` that is not from 1"),
        ({"id": "300", "category_id": 5}, "have a segment with an `id` that is not from 1"),
        ({"id": 300, "category_id": "5"}, "have a segment with a `category_id` that is not a whole number"),
        (
            {"id": 300, "category_id": 6},
            "a category that is not in the file; the first: image 1, segment 300, category_id 6",
        ),
        ({"id": 300, "category_id": 5, "iscrowd": "some"}, "with an `iscrowd` that is neither 0 nor 1"),
        (7, "have a segment that is not an object"),
    ],
)
def test_a_segment_that_cannot_be_used_is_named_and_its_map_may_be_skipped(folder, segment, message, caplog):
    path, content = folder
    first = {**content["annotations"][0], "image_id": 1}
    annotations = [content["annotations"][0], {**first, "segments_info": [first["segments_info"][0], segment]}]
    with pytest.raises(ValueError, match=f"1 of 2 maps .*{message}"):
        load(folder, annotations=annotations)
    files = (path / "images", path / "maps", path / "panoptic.json")
    assert load_coco_panoptic(*files, on_bad_row="skip")["image_id"][:] == [2] and "1 of 2 maps" in caplog.text


def test_a_crowd_flag_may_be_a_word_or_a_bool(folder):
    infos = folder[1]["annotations"][0]["segments_info"]
    flags = [True, "false", None]
    annotation = {**folder[1]["annotations"][0]}
    annotation["segments_info"] = [{**info, "iscrowd": flag} for info, flag in zip(infos, flags, strict=True)]
    assert [info["iscrowd"] for info in load(folder, annotations=[annotation])[0]["segments_info"]] == [1, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "has no maps: its list `annotations` is empty"),
        (
            {"annotations": [{"image_id": 2, "bbox": [0, 0, 1, 1]}]},
            "its annotations have a `bbox`. Read it with load_coco_detection",
        ),
        ({"annotations": [{"image_id": 2, "segments_info": []}]}, "1 of 1 maps have no `file_name`"),
        (
            {"annotations": [{"image_id": 2, "file_name": "../images/2.jpg", "segments_info": []}]},
            "leads out of its folder",
        ),
        ({"categories": [{"id": 5}]}, "the category {'id': 5} has no `name`"),
    ],
)
def test_a_file_without_maps_is_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **change)


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"id": 5, "name": "cat"}, "lacks `isthing`"),
        ({"id": 5, "name": "cat", "isthing": "perhaps"}, "neither 0 nor 1"),
        ({"id": "5", "name": "cat", "isthing": 1}, "not a whole number"),
    ],
)
def test_categories_of_another_file_are_refused(folder, category, message):
    (folder[0] / "panoptic.json").write_text(json.dumps({"categories": [category]}))
    with pytest.raises(ValueError, match=f"is not a panoptic file: its category .* {message}"):
        panoptic_categories(folder[0] / "panoptic.json")


def photo(path, size, orientation) -> None:
    """Save a photo whose left half is white as it is stored."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def oriented(folder, size, orientation, maps, **options):
    """The row of a photo that is stored with `size`. Its map is for the photo as "stored" or as "shown"."""
    path = folder[0]
    photo(path / "images" / "2.png", size, orientation)
    with Image.open(path / "images" / "2.png") as opened:
        seen = opened if maps == "stored" else ImageOps.exif_transpose(opened)
        white = np.asarray(seen)[..., 0] == 255
    Image.fromarray(rgb_from_ids(np.where(white, 300, 70000))).save(path / "maps" / "2.png")
    infos = [{"id": 300, "category_id": 5}, {"id": 70000, "category_id": 90}]
    content = {
        "images": [{"id": 2, "file_name": "2.png"}],
        "annotations": [{"image_id": 2, "file_name": "2.png", "segments_info": infos}],
        "categories": CATEGORIES,
    }
    (path / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic(path / "images", path / "maps", path / "panoptic.json", **options)[0]


def is_aligned(row) -> bool:
    """Whether the thing in the map covers the white half of the photo."""
    white = np.asarray(row["image"].convert("L")) == 255
    return bool(((ids_from_rgb(np.asarray(row["segmentation"])) == 300) == white).all())


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("maps", ["shown", "stored"])
def test_a_map_lies_on_its_photo_where_the_sizes_tell_how_it_is_turned(folder, orientation, maps, tmp_path):
    row = oriented(folder, (12, 10), orientation, maps)
    assert row["image"].size == row["segmentation"].size == (10, 12) and is_aligned(row)
    stored = maps == "stored"
    frame = {
        "size": [12, 10] if stored else [10, 12],
        "orientation": orientation if stored else 1,
        "image_size": [10, 12],
    }
    assert row["frame"] == frame
    prediction = (ids_from_rgb(np.asarray(row["segmentation"])), row["segments_info"])
    save_coco_panoptic([prediction], [2], tmp_path / "out", tmp_path / "out.json", frames=[frame])
    ((written, _),), _ = read_coco_panoptic(tmp_path / "out", tmp_path / "out.json")
    with Image.open(folder[0] / "maps" / "2.png") as truth:
        assert (written == ids_from_rgb(np.asarray(truth))).all()


@pytest.mark.parametrize(("size", "orientation"), [((12, 10), 3), ((10, 10), 6), ((12, 10), 2)])
def test_a_photo_whose_size_does_not_tell_is_warned_of_and_can_be_said_to_be_stored(folder, size, orientation, caplog):
    assert is_aligned(oriented(folder, size, orientation, "shown"))
    assert "1 of 1 images have an EXIF orientation, and their size does not tell" in caplog.text
    caplog.clear()
    assert is_aligned(oriented(folder, size, orientation, "stored", frame="stored"))
    assert "their maps are for the pixels as stored: the maps are turned as well" in caplog.text


def test_a_map_that_was_missing_and_is_there_now_is_a_row(folder):
    path, content = folder
    annotations = [content["annotations"][0], {**content["annotations"][0], "image_id": 1, "file_name": "1.png"}]
    (path / "panoptic.json").write_text(json.dumps({**content, "annotations": annotations}))
    files = (path / "images", path / "maps", path / "panoptic.json")
    for count in (1, 2):
        assert len(load_coco_panoptic(*files, on_bad_row="skip")) == count
        (path / "maps" / "1.png").write_bytes((path / "maps" / "2.png").read_bytes())


def test_maps_of_another_size_than_their_photos_are_counted(folder):
    path, _ = folder
    Image.new("RGB", (24, 20)).save(path / "images" / "2.jpg")
    with pytest.raises(
        ValueError, match=r"1 of 1 maps have another size than their photo .*2.png is 12 x 10, .* 24 x 20"
    ):
        load(folder)


def coco() -> tuple[datasets.Dataset, list[dict]]:
    path = SHARED / "data" / "coco_panoptic_200"
    if not path.exists():
        pytest.skip(f"{path} is not there: images of COCO with panoptic maps")
    dataset = load_coco_panoptic(path / "images", path / "panoptic", path / "panoptic.json")
    return dataset, panoptic_categories(path / "panoptic.json")


def test_cocos_own_files_are_read_and_their_truth_has_quality_one():
    dataset, categories = coco()
    assert len(dataset) == 145 and len(categories) == 133
    p = PanopticProcessor(image_processor(), categories)
    check(dataset, p)
    rows = [{**row, "image": row["image"].convert("RGB")} for row in dataset]
    references = p.get_references(rows)
    assert sum(len(segments_info) for _, segments_info in references) == 1589
    quality = panoptic_quality(references, references, categories)
    assert quality["All"]["pq"] == quality["Things"]["pq"] == quality["Stuff"]["pq"] == 1
    assert PanopticReward()(references[:5], references[:5]) == [
        sum(not segment["iscrowd"] for segment in segments_info) for _, segments_info in references[:5]
    ]


def test_digit_scenes_work_with_their_own_categories():
    dataset = digit_scenes("test", 4, annotations=["segmentation"])
    p = processor(categories=PANOPTIC_CATEGORIES, max_instances=12)
    check(dataset, p)
    references = p.get_references(list(dataset))
    assert panoptic_quality(references, references, PANOPTIC_CATEGORIES)["All"]["pq"] == 1
    _, semantics, instances = dense(p, *dataset)
    assert semantics.min() >= 1 and semantics.max() == 14  # nothing is void; the photo is the last category
    for image, r in enumerate(dataset):
        assert instances[image].max() <= len(r["segments_info"])


# --- the picture ----------------------------------------------------------------------------------------------------


def test_a_picture_paints_segments_and_leaves_void():
    image = Image.new("RGB", (64, 64), (100, 100, 100))
    ids = quarters(64, 64)
    picture = draw(image, (ids, row(ids)["segments_info"]), width=128, categories=CATEGORIES, opacity=1.0)
    assert picture.size == (128, 128)
    assert picture.getpixel((5, 5)) == (100, 100, 100)
    assert picture.getpixel((124, 4)) == category_colour(2)
    assert picture.getpixel((4, 124)) == category_colour(1)
    again = draw(image, (ids, row(ids)["segments_info"]), width=128, categories=CATEGORIES, opacity=1.0)
    assert picture.tobytes() == again.tobytes()


def test_a_picture_judges_segments_as_panoptic_quality_does():
    image = Image.new("RGB", (128, 128))
    ids = quarters(128, 128)
    truth = ids, row(ids)["segments_info"]
    wrong = [{**info, "category_id": 5} for info in truth[1]]  # wrong for the ids 300 and 70000
    green, red, blue = (21, 128, 61), (200, 30, 30), (29, 78, 216)

    def colours(picture: Image.Image) -> set:
        return {colour for _, colour in picture.getcolors(2**24)}

    assert {green, red, blue} & colours(draw(image, truth, truth, categories=CATEGORIES)) == {green}
    assert {green, red, blue} <= colours(draw(image, (ids, wrong), truth, categories=CATEGORIES))
    assert {green, red, blue} & colours(draw(image, truth, categories=CATEGORIES)) == set()
    on_void = np.full((128, 128), 1), [{"id": 1, "category_id": 5}]
    assert {green, red} & colours(
        draw(image, on_void, (np.zeros((128, 128), int), []), categories=CATEGORIES)
    ) == set()


def test_a_picture_takes_a_prediction_of_the_models_size_and_an_empty_one():
    image = Image.new("L", (50, 70))
    small = np.array([[1, 2]]), [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 6}]
    assert draw(image, small).size == (350, 490)
    assert draw(image, (np.zeros((2, 2), int), []), small, categories=CATEGORIES).size == (350, 490)


def test_neighbouring_categories_have_colours_that_differ():
    colours = np.array([category_colour(place) for place in range(133)], float)
    assert len({tuple(colour) for colour in colours}) == 133
    assert np.abs(np.diff(colours, axis=0)).max(1).min() > 60
