"""Colourfulness against scikit-image and NumPy: images a second on one core, and how far the numbers differ.

    pip install scikit-image
    python benchmarks/colorfulness.py

The pictures are three photos that come with scikit-image, and one of random pixels, at 512 x 512. Times are CPU time;
the two take turns. Our table of all colours, which takes some seconds once, is made before. The benchmark stops if Lab
differs by more than float32 explains, or if a term of the reward differs at all.
"""

import argparse

import numpy as np
import torch
from measuring import clock_of, compared, report
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from vision_rl.tasks.colorization import colorfulness_terms, rgb_to_lab


def pictures(side: int) -> dict[str, np.ndarray]:
    photos = {name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea")}
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return {**{name: np.array(photo.resize((side, side))) for name, photo in photos.items()}, "noise": noise}


def terms_by_skimage(image: np.ndarray | torch.Tensor) -> tuple[float, float]:
    """The reward's two terms, written down in the plain way."""
    _, a, b = np.moveaxis(rgb2lab(image), -1, 0)
    counts, _ = np.histogram(np.arctan2(b, a), bins=7, range=(-np.pi, np.pi))
    shares = counts[counts > 0] / counts.sum()
    return (a**2 + b**2 > 10).mean(), -(shares * np.log(shares)).sum()


def compare(name: str, image: np.ndarray, rounds: int) -> list[dict]:
    floats = torch.from_numpy(image).float() / 255
    lab, terms = rgb2lab(image), terms_by_skimage(image)
    runs = {
        "Lab, float32": (lambda: rgb2lab(floats), lambda: rgb_to_lab(floats), lab, 1e-4),
        "terms of float32": (lambda: terms_by_skimage(floats), lambda: colorfulness_terms([floats]), terms, 1e-12),
        "terms of uint8": (lambda: terms_by_skimage(image), lambda: colorfulness_terms([image]), terms, 1e-12),
    }
    rows = []
    for what, (theirs, ours, expected, tolerance) in runs.items():
        difference = float(np.abs(np.squeeze(np.asarray(ours())) - expected).max())
        assert difference < tolerance, f"{what} of {name} differ by {difference:.1e}"
        rows.append(
            {
                "image": name,
                "what": what,
                **compared("scikit-image", theirs, ours, 1, rounds, clock_of(kind="cpu")),
                "differs by": difference,
            }
        )
    return rows


def main(side: int, rounds: int) -> list[dict]:
    torch.set_num_threads(1)
    return [row for name, image in pictures(side).items() for row in compare(name, image, rounds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    report("colorfulness", main(**vars(parser.parse_args())))
