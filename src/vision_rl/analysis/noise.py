"""How many images an update needs before its step is more signal than noise, from gradients of independent batches.

The gradient of B images is the expected gradient, the signal, plus noise whose variance falls as 1 / B. The number of images
at which the noise, summed over all parameters, is as large as the squared signal is the "simple noise scale" of McCandlish
et al. 2018 (arXiv 1812.06162), there counted in samples. Far below it a step is mostly noise, and a plateau that is seen
then looks like one that has been reached.

The squared length of a mean gradient is no measure of the signal: noise makes it longer. Products of *different* batches'
gradients are: noise of one is independent of noise of the other, so their mean is the squared signal, and may come out below 0
where there is little of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


WIDTH = 65_521  # of a sketch: a prime, so that the rows of no weight lie upon one another
CONFIDENCE = 1.96  # standard errors of a 95 % interval


class Sketch:
    """A gradient in at most 65,521 numbers that keep its products with others, so that many can be kept.

    Entries are added up with random signs (a count sketch; Charikar et al. 2002). Products are right on average and differ
    by about sqrt(2 / 65,521), 0.6 %, of the lengths; those of short gradients are exact.

    Args:
        size: of the gradient.
        seed: of the signs, which all gradients that are compared must share.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.width = size, min(size, WIDTH)
        signs = torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
        self.signs = torch.ones_like(signs) if size <= WIDTH else 2 * signs - 1

    def __call__(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sketch a gradient, given in parts in their order: `(width,)`, float32 on the CPU."""
        flat = torch.cat([part.detach().flatten().float() for part in parts])
        if len(flat) != self.size:
            raise ValueError(f"The gradient has {len(flat)} numbers, but the sketch was made for {self.size}.")
        self.signs = self.signs.to(flat.device)
        signed = torch.nn.functional.pad(flat * self.signs, (0, -len(flat) % self.width))
        return signed.view(-1, self.width).sum(0).cpu()


@dataclass(frozen=True)
class GradientNoise:
    """What M gradients of B images each say of one estimator; errors are standard errors, by the jackknife over batches.

    Args:
        name: of the estimator.
        batches: M. images: B.
        signal: squared length of the expected gradient, without bias: it may be below 0.
        noise: variance of the gradient of a single image, summed over the parameters.
        signal_to_noise: the first over the second.
    """

    name: str
    batches: int
    images: int
    signal: float
    signal_error: float
    noise: float
    noise_error: float
    signal_to_noise: float
    signal_to_noise_error: float

    @property
    def images_needed(self) -> float | None:
        """Images of an update whose noise is as large as its signal; None where no signal was seen."""
        return _inverse(self.signal_to_noise)

    @property
    def images_needed_interval(self) -> tuple[float | None, float | None]:
        """Both ends of the 95 % interval of `images_needed`; an upper end of None: there may be no signal at all."""
        margin = CONFIDENCE * self.signal_to_noise_error
        return _inverse(self.signal_to_noise + margin), _inverse(self.signal_to_noise - margin)

    def share_of_signal(self, images: int) -> float:
        """The signal's share, 0 to 1, of the expected squared length of the gradient of so many images."""
        ratio = max(0.0, self.signal_to_noise) * images
        return ratio / (1 + ratio)

    def summary(self) -> dict:
        """Return all of these as plain numbers, by name."""
        return {
            **vars(self),
            "images_needed": self.images_needed,
            "images_needed_interval": list(self.images_needed_interval),
            "share_of_signal": self.share_of_signal(self.images),
        }


def images_text(images: float | None) -> str:
    """A number of images as people read it; None is one that these batches cannot tell."""
    return "beyond telling" if images is None else f"{images:,.3g}" if images < 1000 else f"{images:,.0f}"


def noise_of(name: str, gradients: Sequence[torch.Tensor], images: int) -> GradientNoise:
    """Measure the noise of independent gradients `(P,)`, or their sketches, each the mean over `images` images.

    Raises:
        ValueError: for fewer than four of them.
    """
    if len(gradients) < 4:
        raise ValueError(f"The noise of a gradient needs at least 4 batches; there are {len(gradients)}.")
    stacked = torch.stack(list(gradients)).double()
    products = (stacked @ stacked.T).numpy()  # (M, M)
    count, total, own = len(products), products.sum(), np.diag(products)
    with_others = 2 * products.sum(1) - own  # what goes when a batch is left out
    estimates = _signal_and_noise(count, total, own.sum(), images)
    without = np.stack(_signal_and_noise(count - 1, total - with_others, own.sum() - own, images))  # (3, M)
    errors = np.sqrt((count - 1) * without.var(axis=1))
    (signal, noise, ratio), (signal_error, noise_error, ratio_error) = map(float, estimates), map(float, errors)
    return GradientNoise(name, count, images, signal, signal_error, noise, noise_error, ratio, ratio_error)


def _signal_and_noise(count, total, own, images: int) -> tuple:
    """Estimate signal, noise and their ratio from `count` gradients.

    `total` is the sum of all products of two of them, `own` that of the products of each with itself.
    """
    signal = (total - own) / (count * (count - 1))
    noise = images * (own - total / count) / (count - 1)
    return signal, noise, signal / np.maximum(noise, np.finfo(float).tiny)


def _inverse(ratio: float) -> float | None:
    return 1 / ratio if ratio > 0 else None
