"""Any picture that a row may hold as 8-bit RGB. A range of values that is not known is an error, for guessed it may be black."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps


DEEP = 4095  # most of 12 bits: a 16-bit picture that reaches no further is hardly one of the full range
CROP_RATIOS = (0.75, 1.33)  # width to height of a random crop (TensorFlow's `sample_distorted_bounding_box`)
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def rgb_image(image, row: int) -> Image.Image:
    """Any picture as 8-bit RGB: grey, 16-bit, CMYK, alpha (over white) and palette ones are converted.

    Args:
        image: a PIL image, a path, or an array `(H, W)` or `(H, W, C)` of uint8, bool, uint16 or larger integers, where C
            is 1 to 4: grey, grey and alpha, RGB, RGBA. A torch tensor is `(C, H, W)`, as torchvision has it.
        row: its number, for the error.

    Raises:
        ValueError: with the row, and the file where there is one, for what cannot be decoded, and for values whose range
            is not known: floats; integers that fill neither 8 nor 16 bits, such as 12-bit pictures in 16-bit files.
    """
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    try:
        return _rgb(image)
    except Exception as error:  # Pillow's plugins raise errors of many kinds
        raise ValueError(f"The image of row {row}{f' ({path})' if path else ''} cannot be read: {error}") from error


def is_picture(images: Any) -> bool:
    """Whether this is one picture, and not several: a PIL image, a path, or an array of fewer than four dimensions."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image | str | os.PathLike)


def as_images(images) -> list[Image.Image]:
    """RGB pictures, of one or several in any form that `rgb_image` reads."""
    several = [images] if is_picture(images) else images
    return [_as_rgb(image, number) for number, image in enumerate(several)]


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture that is turned as its camera says."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    """1: as it is; 2 to 8: mirrored or turned, from 5 on by a quarter."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _as_rgb(image, number: int) -> Image.Image:
    is_rgb = isinstance(image, Image.Image) and image.mode == "RGB" and not image.has_transparency_data
    return image if is_rgb and _orientation(image) == 1 else rgb_image(image, number)


def _rgb(image) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        image = Image.open(image)
    if isinstance(image, Image.Image):
        image = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)  # as `datasets` turns photos
    elif isinstance(image, torch.Tensor):
        image = _of_array(np.moveaxis(image.cpu().numpy(), 0, -1) if image.ndim == 3 else image.cpu().numpy())
    elif isinstance(image, np.ndarray):
        image = _of_array(image)
    else:
        raise TypeError(f"a {type(image).__name__} is not an image (expected a PIL image, a path or an array)")
    image.load()
    if 0 in image.size:
        raise ValueError(f"it has no pixels: its size is {image.size}")
    if image.mode == "F":
        image = Image.fromarray(_bytes_of_floats(np.asarray(image)))
    elif image.mode.startswith("I"):
        image = Image.fromarray(_bytes_of_integers(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _of_array(pixels: np.ndarray) -> Image.Image:
    """An array `(H, W)` or `(H, W, C)` as a picture of 8 bits a channel."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS):
        raise ValueError(
            f"an array {pixels.shape} is neither (H, W) nor (H, W, C) with 1 to 4 channels; np.moveaxis(array, 0, -1) "
            "moves the channels from the first axis to the last"
        )
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != np.uint8:
        pixels = _bytes_of_integers(pixels)
    elif pixels.dtype != np.uint8:
        raise TypeError(
            f"an array of {pixels.dtype} has no known range (expected uint8, 0 to 255); convert it to uint8, for "
            "example by (array * 255).round().astype(np.uint8) where the values are from 0 to 1"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _bytes_of_integers(pixels: np.ndarray) -> np.ndarray:
    """Integers that fill 16 bits, or 8 bits in a wider type, as uint8; PIL's own conversion would clip at 255."""
    low, high = int(pixels.min()), int(pixels.max())
    if low == high == 0:
        return np.zeros(pixels.shape, np.uint8)
    if low >= 0 and DEEP < high <= 65535:
        return (pixels / 257).round().astype(np.uint8)
    if low >= 0 and 1 < high <= 255 and pixels.dtype.itemsize > 2:  # int64, which numpy makes of any list
        return pixels.astype(np.uint8)
    raise ValueError(
        f"its {pixels.dtype} values go from {low} to {high}, which fills neither 8 nor 16 bits, so their range is not "
        "known; convert it to uint8, for example by (array / 16).astype(np.uint8) where the values have 12 bits"
    )


def _bytes_of_floats(pixels: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255, as PIL makes them of 8-bit pictures; no other floats have a known range."""
    if not ((pixels == pixels.round()) & (pixels >= 0) & (pixels <= 255)).all() or pixels.max() == 1:
        raise ValueError(
            f"its float values go from {pixels.min():g} to {pixels.max():g}, so their range is not known; convert it to "
            "uint8, for example by (array * 255).round().astype(np.uint8) where the values are from 0 to 1"
        )
    return pixels.astype(np.uint8)


def random_box(size: tuple[int, int], areas: Sequence[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A part of an image for training, as x0, y0, x1, y1: of random area, shape and place.

    All heights that give such an area are equally likely, as in TensorFlow's `sample_distorted_bounding_box`. It is smaller
    than asked where none of that shape fits.
    """
    width, height = size
    ratio = rng.uniform(*CROP_RATIOS)
    lowest, highest = (math.sqrt(area * width * height / ratio) for area in areas)
    highest = min(highest, height, width / ratio)
    new_height = rng.uniform(min(lowest, highest), highest)
    new_width, new_height = min(width, max(1, round(new_height * ratio))), min(height, max(1, round(new_height)))
    x, y = int(rng.integers(width - new_width + 1)), int(rng.integers(height - new_height + 1))
    return x, y, x + new_width, y + new_height
