"""Colourfulness: images a second on one core against scikit-image and NumPy, and how far the numbers differ.

    pip install scikit-image
    python benchmarks/colorfulness.py

Three photos that come with scikit-image, and one of random pixels, at 512 x 512. Times are of the processor, the best of
nine runs in turns. It stops if Lab differs by more than float32 explains, or a term of the reward at all.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from vision_rl.tasks.colorization import colorfulness_terms, rgb_to_lab


def pictures(side: int) -> dict[str, np.ndarray]:
    photos = {name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea")}
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return {**{name: np.array(photo.resize((side, side))) for name, photo in photos.items()}, "noise": noise}


def terms_by_skimage(image: np.ndarray | torch.Tensor) -> tuple[float, float]:
    """The reward's terms as one would write them down."""
    _, a, b = np.moveaxis(rgb2lab(image), -1, 0)
    counts, _ = np.histogram(np.arctan2(b, a), bins=7, range=(-np.pi, np.pi))
    shares = counts[counts > 0] / counts.sum()
    return (a**2 + b**2 > 10).mean(), -(shares * np.log(shares)).sum()


def seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(image: np.ndarray, repeats: int) -> None:
    floats = torch.from_numpy(image).float() / 255
    lab, terms = rgb2lab(image), terms_by_skimage(image)
    runs = {
        "Lab, float32": (lambda: rgb2lab(floats), lambda: rgb_to_lab(floats), lab, 1e-4),
        "terms of float32": (lambda: terms_by_skimage(floats), lambda: colorfulness_terms([floats]), terms, 1e-12),
        "terms of uint8": (lambda: terms_by_skimage(image), lambda: colorfulness_terms([image]), terms, 1e-12),
    }
    for what, (theirs, ours, expected, tolerance) in runs.items():
        slow, fast = 1 / np.min([[seconds(theirs), seconds(ours)] for _ in range(repeats)], axis=0)
        difference = np.abs(np.squeeze(np.asarray(ours())) - expected).max()
        print(f"  {what:18s}{slow:12.0f}{fast:12.0f}{fast / slow:8.1f}x{difference:12.1e}")
        assert difference < tolerance, what


def main(side: int, repeats: int) -> None:
    torch.set_num_threads(1)
    images = pictures(side)
    print(f"the table of all colours: {seconds(lambda: colorfulness_terms([images['noise'][:1]])):.1f} s, once")
    print(f"{'images a second':20s}{'scikit-image':>12s}{'vision_rl':>12s}{'ratio':>9s}{'difference':>12s}")
    for name, image in images.items():
        print(name)
        compare(image, repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    main(**vars(parser.parse_args()))
