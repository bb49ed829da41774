"""What can be said of a picture's colours in a few numbers, for a reward that is fitted to people's choices."""

from collections.abc import Sequence

import torch

from vision_rl.arguments import naming_arguments
from vision_rl.tasks.colorization.colorfulness import Picture, uint8_pixels_of
from vision_rl.tasks.colorization.lab import rgb_to_lab


# The circle of a and b from 5 degrees on, and where each part of it ends, half way between two colours of such names.
HUES = {"red": 65.0, "yellow": 120.0, "green": 172.5, "cyan": 240.0, "blue": 307.5, "magenta": 365.0}


@naming_arguments
def color_features(completions: Sequence[Picture], **kwargs) -> dict[str, list[float]]:
    """Colour as people speak of it: which tone a picture has, how strong it is, and how it is spread. By name, one a picture.

    In CIELAB: `a` (green to red) and `b` (blue to yellow), means over the pixels; `chroma`, the mean distance from grey, and
    `chroma_spread`, its standard deviation; `patchiness`, the mean step of colour from a pixel to its neighbours; the share of
    each of the `HUES` in all chroma. The squares of the first three are there because people may like a moderate amount best.

    Args:
        completions: images, as `colorfulness_terms` takes them.
        kwargs: the other columns that a trainer passes; not used.
    """
    rows = [_described(uint8_pixels_of(image)) for image in completions]
    return {name: [row[name] for row in rows] for name in _described(torch.zeros(1, 1, 3, dtype=torch.uint8))}


def _described(pixels: torch.Tensor) -> dict[str, float]:
    a, b = rgb_to_lab(pixels.double() / 255).unbind(-1)[1:]  # (H, W) each
    chroma = torch.hypot(a, b)
    steps = [(plane.diff(dim=side).abs().sum() / plane.numel()).item() for plane in (a, b) for side in (0, 1)]
    angle = (torch.rad2deg(torch.atan2(b, a)).flatten() - 5).remainder(360)  # (H * W,)
    hue = torch.bucketize(angle, torch.tensor(list(HUES.values())[:-1], dtype=torch.float64) - 5)
    shares = torch.bincount(hue, chroma.flatten(), minlength=len(HUES)) / chroma.sum().clamp(min=1e-6)
    amounts = {"a": a.mean().item(), "b": b.mean().item(), "chroma": chroma.mean().item()}
    return {
        **amounts,
        **{f"{name}_squared": value * value for name, value in amounts.items()},
        "chroma_spread": chroma.std(correction=0).item(),
        "patchiness": sum(steps),
        **dict(zip(HUES, shares.tolist(), strict=True)),
    }
