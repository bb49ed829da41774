"""How colourful a picture is: the two terms of the paper's reward (section 4.3), and what is measured beside them."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vision_rl.arguments import naming_arguments
from vision_rl.tasks.colorization.lab import rgb_to_lab


Picture = Image.Image | np.ndarray | torch.Tensor
Hue = Literal["arctan2", "arctan"]
Entropy = Literal["all", "vivid"]

HUE_BINS = 7  # section 4.3
PSNR_OF_EQUAL = 100.0  # in a mean, where infinity would hide all other images
VIVID = 10  # a pixel is vivid where a^2 + b^2 is above this (section 4.3)


@naming_arguments
def colorfulness_terms(
    images: Iterable[Picture], hue: Hue = "arctan2", entropy_over: Entropy = "all"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of vivid pixels and the entropy of the hue of each image (section 4.3).

    The paper leaves two things open, and its numbers (0.97 and 1.84 after tuning) fit each reading: whether
    "arctan(b/a)" is the hue angle, or literally folds opposite hues into one (red into green); and whether grey pixels
    have a hue. The entropy is in nats, as 1.84 of at most ln 7 = 1.95. Where a and b are both nearly 0 the hue is
    whatever the last digits make of it: the entropy of a grey picture says nothing, and is multiplied by 0 in the reward.

    Pixels are looked up in a table of all 2^24 colours, made in float64 when it is first needed (some seconds, 16 MB).
    So the terms do not depend on device or precision, and an image has those of the file that it is saved to.

    Args:
        images: a batch `(N, H, W, 3)` or any series of images, of one size or several: PIL images, arrays or tensors
            `(H, W, 3)`, integers from 0 to 255 or floats from 0 to 1, which are rounded to 255ths.
        hue: "arctan2", the angle in (-pi, pi], or "arctan" of b / a, in (-pi/2, pi/2); seven equal bins of it.
        entropy_over: "all" pixels, or only the "vivid" ones.

    Returns:
        `vivid_fraction (N,)` from 0 to 1 and `hue_entropy (N,)` from 0 to ln 7, float64 on the CPU.

    Raises:
        ValueError: for another option, no image, or something that is no image.
    """
    check_options(hue, entropy_over)
    # One image at a time: its planes stay in the cache, which is faster than the whole batch at once.
    counts = [_count_hues(uint8_pixels_of(image), hue).cpu() for image in images]
    if not counts:
        raise ValueError("There are no images: pass at least one.")
    hues = torch.stack(counts).double()  # (N, 2, 7): of dull and of vivid pixels
    vivid = hues[:, 1]
    vivid_fraction = vivid.sum(1) / hues.sum((1, 2))
    counted = vivid if entropy_over == "vivid" else hues.sum(1)  # (N, 7)
    shares = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return vivid_fraction, torch.special.entr(shares).sum(1)


def check_options(hue: str, entropy_over: str) -> None:
    """Raises a `ValueError` for an option that `colorfulness_terms` does not have."""
    if hue not in ("arctan2", "arctan"):
        raise ValueError(f"hue must be 'arctan2' or 'arctan'; it is {hue!r}.")
    if entropy_over not in ("all", "vivid"):
        raise ValueError(f"entropy_over must be 'all' or 'vivid'; it is {entropy_over!r}.")


def pixels_of(image: Picture | Sequence) -> torch.Tensor:
    """The image as `(H, W, 3)`, uint8 or floats from 0 to 1, on the device that it is on."""
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"An image has no pixels: its size is {image.size}.")
        return torch.from_numpy(np.array(image.convert("RGB")))
    # a copy: the trainer's arrays are read-only, which a tensor cannot be
    pixels = image if isinstance(image, torch.Tensor) else torch.tensor(np.asarray(image))
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.numel() == 0:
        raise ValueError(f"An image must be (H, W, 3); it is {tuple(pixels.shape)}. Put a single image into a list.")
    if pixels.dtype == torch.uint8:
        return pixels
    top = 1 if pixels.is_floating_point() else 255
    if not (pixels.min() >= 0 and pixels.max() <= top):
        raise ValueError(
            f"An image of {pixels.dtype} must have values from 0 to {top}; it has them from {pixels.min().item():g} to "
            f"{pixels.max().item():g}. Convert values from -1 to 1 by ((x + 1) / 2).clamp(0, 1)."
        )
    return pixels.float() if pixels.is_floating_point() else pixels.to(torch.uint8)


def uint8_pixels_of(image: Picture | Sequence) -> torch.Tensor:
    """The image as it would be saved: `(H, W, 3)` in uint8."""
    pixels = pixels_of(image)
    return (pixels * 255).round().to(torch.uint8) if pixels.is_floating_point() else pixels


def _count_hues(pixels: torch.Tensor, hue: Hue) -> torch.Tensor:
    """How many dull and vivid pixels have their hue in each bin: `(2, 7)`."""
    red, green, blue = pixels.reshape(-1, 3).unbind(1)
    colours = red.int().mul_(65536).add_(green, alpha=256).add_(blue)
    classes = _class_table(hue, pixels.device).index_select(0, colours)
    return torch.bincount(classes, minlength=2 * HUE_BINS).view(2, HUE_BINS)


def _classify(lab: torch.Tensor, hue: Hue) -> torch.Tensor:
    """The bin of each colour's hue, plus seven for a vivid colour: `lab (..., 3)` to uint8 `(...)`."""
    _, a, b = lab.unbind(-1)
    if hue == "arctan2":
        turn = torch.atan2(b, a) / (2 * math.pi)
    else:
        turn = torch.atan(b / a).nan_to_num(0) / math.pi  # black has no b / a
    bins = ((turn + 0.5) * HUE_BINS).floor().clamp(0, HUE_BINS - 1)  # a hue of exactly pi is in the last
    return (bins + HUE_BINS * (a * a + b * b > VIVID)).to(torch.uint8)


@functools.cache
def _class_table(hue: Hue, device: torch.device) -> torch.Tensor:
    """The class of each colour, `(2^24,)` uint8 by 65536 red + 256 green + blue."""
    if device.type != "cpu":  # made on the CPU for all, so that no device puts a colour at a border elsewhere
        return _class_table(hue, torch.device("cpu")).to(device)
    levels = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    table = torch.empty(256, 65536, dtype=torch.uint8, device="cpu")
    for red in range(256):
        table[red] = _classify(rgb_to_lab(torch.cartesian_prod(levels[red : red + 1], levels, levels)), hue)
    return table.flatten()


@naming_arguments
def hasler_colorfulness(image: Picture) -> float:
    """Colourfulness by Hasler and Suesstrunk (2003, their third metric): 0 for grey, about 100 for the most colourful.

    It was fitted to what people say, knows no threshold, and nothing is tuned for it here: it tells whether a model that
    earns more reward has become more colourful.
    """
    red, green, blue = _as_unit_floats(image).mul(255).flatten(0, 1).unbind(1)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = math.hypot(red_green.std(correction=0), yellow_blue.std(correction=0))
    return spread + 0.3 * math.hypot(red_green.mean(), yellow_blue.mean())


@naming_arguments
def mean_squared_error(image: Picture, reference: Picture) -> float:
    """The mean squared difference of two images of one size, values from 0 to 1, over all pixels and channels."""
    found, true = _as_unit_floats(image), _as_unit_floats(reference)
    if found.shape != true.shape:
        raise ValueError(
            f"The image is {tuple(found.shape)}, but its reference is {tuple(true.shape)}: resize one of them to the other."
        )
    return (found - true).square().mean().item()


def psnr(image: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio in decibels: of uint8 with range 255, the same as in [-1, 1] with range 2.

    Infinite where both are equal.
    """
    error = mean_squared_error(image, reference)
    return -10 * math.log10(error) if error > 0 else math.inf


def _as_unit_floats(image: Picture) -> torch.Tensor:
    """The image `(H, W, 3)` in float64, from 0 to 1."""
    pixels = pixels_of(image).cpu()
    return pixels.double() / 255 if pixels.dtype == torch.uint8 else pixels.double()


@naming_arguments
def colorization_metrics(
    predictions: Sequence[Picture],
    references: Sequence[Picture | None] | None = None,
    hue: Hue = "arctan2",
    entropy_over: Entropy = "all",
) -> dict[str, Any]:
    """The paper's numbers of colorization, beside two measures for which nothing is tuned.

    Args:
        predictions: `N` images, as `colorfulness_terms` takes them.
        references: the true images of the same sizes; `None` where there is none.
        hue, entropy_over: as in `colorfulness_terms`.

    Returns:
        Means over the images: `vivid_fraction`, `hue_entropy`, `colorfulness` (of the product of both, which is not the
        product of the means), `hasler_colorfulness`, and with references `psnr`, in which a picture that equals its
        reference counts as 100 dB. Each also as a list with one value an image, under the name `per_image_...`.
    """
    images = [pixels_of(image) for image in predictions]
    vivid_fraction, hue_entropy = colorfulness_terms(images, hue, entropy_over)
    values: dict[str, list] = {
        "vivid_fraction": vivid_fraction.tolist(),
        "hue_entropy": hue_entropy.tolist(),
        "colorfulness": (vivid_fraction * hue_entropy).tolist(),
        "hasler_colorfulness": [hasler_colorfulness(image) for image in images],
    }
    if references is not None and any(reference is not None for reference in references):
        values["psnr"] = [
            None if reference is None else psnr(image, reference)
            for image, reference in zip(images, references, strict=True)
        ]
    counted = {name: [value for value in numbers if value is not None] for name, numbers in values.items()}
    if "psnr" in counted:
        counted["psnr"] = [min(value, PSNR_OF_EQUAL) for value in counted["psnr"]]
    means = {name: _mean(numbers) for name, numbers in counted.items()}
    return {**means, **{f"per_image_{name}": numbers for name, numbers in values.items()}}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
