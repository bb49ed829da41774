"""Any picture becomes 8-bit RGB. If the range of its values is unknown, that is an error, never a black picture."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from vision_rl.processing import rgb_image


GREY = np.arange(256).reshape(16, 16)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1).astype(np.uint8)


def of_raw(mode: str, values: np.ndarray) -> Image.Image:
    order = ">u2" if mode.endswith("B") else "<u2"
    return Image.frombytes(mode, values.shape[::-1], values.astype(order).tobytes())


def stored(values: np.ndarray) -> Image.Image:
    """The picture that `datasets` gives back after storing it; int64 comes back in mode I."""
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [values]}, features=features)[0]["image"]


READ = {
    "uint8": GREY.astype(np.uint8),
    "uint8 of one channel": GREY[..., None].astype(np.uint8),
    "int64": GREY,
    "int32": GREY.astype(np.int32),
    "int64 of 16 bits": GREY * 257,
    "uint16": (GREY * 257).astype(np.uint16),
    "torch (H, W)": torch.from_numpy(GREY.astype(np.uint8)),
    "torch (1, H, W)": torch.from_numpy(GREY.astype(np.uint8))[None],
    "torch (3, H, W)": torch.from_numpy(GREY.astype(np.uint8)).expand(3, 16, 16),
    "mode L": Image.fromarray(GREY.astype(np.uint8)),
    "mode I": Image.fromarray(GREY.astype(np.int32)),
    "mode I of 16 bits": Image.fromarray((GREY * 257).astype(np.int32)),
    "mode F of bytes": Image.fromarray(GREY.astype(np.float32)),
    **{f"mode {mode}": of_raw(mode, GREY * 257) for mode in ("I;16", "I;16B", "I;16L", "I;16N")},
}


@pytest.mark.parametrize("name", READ)
def test_a_grey_picture_keeps_its_levels(name):
    assert (np.asarray(rgb_image(READ[name], 0)) == GREY[..., None]).all()


def test_a_data_set_of_integers_keeps_its_levels():
    with pytest.warns(UserWarning, match="Downcasting"):
        assert (np.asarray(rgb_image(stored(GREY), 0)) == GREY[..., None]).all()


@pytest.mark.parametrize("values", [COLOUR, COLOUR.astype(np.uint16) * 257, torch.from_numpy(COLOUR).movedim(-1, 0)])
def test_colours_keep_theirs(values):
    assert (np.asarray(rgb_image(values, 0)) == COLOUR).all()


UNKNOWN = {
    "floats 0..1": GREY / 255,
    "floats 0..255": GREY * 1.0,
    "float16": (GREY / 255).astype(np.float16),
    "torch floats": torch.rand(3, 4, 4),
    "12 bits": GREY * 16,
    "12 bits in uint16": (GREY * 16).astype(np.uint16),
    "8 bits in uint16": GREY.astype(np.uint16),
    "negative": GREY - 1,
    "beyond 16 bits": GREY * 1000,
    "a mask of int64": (GREY > 9).astype(int),
    "mode F, 0..1": Image.fromarray((GREY / 255).astype(np.float32)),
    "mode F, a depth": Image.fromarray((GREY / 3).astype(np.float32)),
    "mode F, NaN": Image.fromarray(np.full((4, 4), np.nan, np.float32)),
    "mode I, 12 bits": Image.fromarray((GREY * 16).astype(np.int32)),
    **{f"mode {mode}, 12 bits": of_raw(mode, GREY * 16) for mode in ("I;16", "I;16B")},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_range_is_an_error_that_says_what_to_do(name):
    with pytest.raises(ValueError, match=r"image of row 3 cannot be read: .*range.*convert it to uint8, for example"):
        rgb_image(UNKNOWN[name], 3)


def test_black_is_black_in_every_range():
    for black in (
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), int),
        Image.new("F", (4, 4)),
        Image.new("I;16", (4, 4)),
    ):
        assert not np.asarray(rgb_image(black, 0)).any()


def test_bool_is_black_and_white():
    assert np.unique(np.asarray(rgb_image(GREY > 100, 0))).tolist() == [0, 255]
    assert np.unique(np.asarray(rgb_image(Image.fromarray(GREY > 100), 0))).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "P"])
def test_transparency_is_laid_over_white_in_every_mode(mode):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode if mode != "P" else "L")
    if mode == "P":
        picture = Image.new("P", (4, 4), 0)
        picture.info["transparency"] = 0
    assert rgb_image(picture, 0).getpixel((1, 1)) == (255, 255, 255)


def test_two_channels_are_grey_and_alpha():
    array = np.stack([np.full((4, 4), 100), np.array([[0, 255, 0, 255]] * 4)], axis=-1).astype(np.uint8)
    assert np.asarray(rgb_image(array, 0))[0, :, 0].tolist() == [255, 100, 255, 100]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16), (16, 16, 5), (16,), (2, 4, 4, 3), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"row 3 cannot be read: an array .* is neither \(H, W\) nor \(H, W, C\)"):
        rgb_image(np.zeros(shape, np.uint8), 3)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="row 3 cannot be read: it has no pixels"):
        rgb_image(Image.new("RGB", (0, 5)), 3)


def test_a_picture_that_pillow_takes_for_a_bomb_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image of row 7 \(.*large\.png\) cannot be read: .*decompression bomb"):
        rgb_image(str(tmp_path / "large.png"), 7)
