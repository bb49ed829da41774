"""Other views of a training image, its boxes with it: mirrored, smaller on a grey ground, or a part of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


GROUND = (128, 128, 128)


def mirrored(image: Image.Image, bbox: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Left for right; boxes `(n, 4)` are x, y, width, height in pixels."""
    x, y, width, height = bbox.T
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), np.stack([image.width - x - width, y, width, height], 1)


def scale_jittered(
    image: Image.Image, bbox: np.ndarray, scales: Sequence[float], rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """The image as if seen from another distance, as in Pix2Seq's and Copy-Paste's large scale jitter.

    Its scale is uniform in `scales`. A smaller image is laid anywhere on a grey ground of the image's size; of a larger one
    a part is cut out anywhere. Boxes `(n, 4)` go with it and may reach out of the picture, or lie outside.
    """
    scale = rng.uniform(scales[0], scales[1])
    width, height = image.size
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        x, y = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))
        ground = Image.new("RGB", image.size, GROUND)
        ground.paste(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), (x, y))
        factors = np.array([size[0] / width, size[1] / height])
        return ground, np.concatenate([bbox[:, :2] * factors + (x, y), bbox[:, 2:] * factors], axis=1)
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    x, y = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))
    part = image.crop((x, y, x + size[0], y + size[1]))
    return part, np.concatenate([bbox[:, :2] - (x, y), bbox[:, 2:]], axis=1)
