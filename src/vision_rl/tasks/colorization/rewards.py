"""Rewards of colorization: colourfulness (paper, section 4.3), and likeness to the photo to hold against it."""

from collections.abc import Callable

from vision_rl.arguments import naming_arguments
from vision_rl.tasks.colorization.colorfulness import (
    Entropy,
    Hue,
    Picture,
    check_options,
    colorfulness_terms,
    mean_squared_error,
)


class ColorfulnessReward:
    """The share of vivid pixels times the entropy of the hue, from 0 to ln 7 = 1.95 (section 4.3). Needs no reference.

    It pays for colours of all hues in equal shares whatever the picture shows, and a confetti of saturated pixels earns
    it all. The paper stops after 1,000 steps at a small learning rate. To tune longer, mix in `fidelity_reward`, for
    example `reward_funcs=[ColorfulnessReward(), fidelity_reward], reward_weights=[1.0, 5.0]`.

    Args:
        hue: "arctan2" or "arctan".
        entropy_over: "all" pixels or the "vivid" ones; see `colorfulness_terms`.
    """

    def __init__(self, hue: Hue = "arctan2", entropy_over: Entropy = "all"):
        check_options(hue, entropy_over)
        self.hue, self.entropy_over = hue, entropy_over

    @naming_arguments
    def __call__(
        self, completions: list[Picture], log_metric: Callable[[str, float], None] | None = None, **kwargs
    ) -> list[float]:
        """One number a completion; the two terms are logged beside it.

        Args:
            completions: images, as `colorfulness_terms` takes them.
            log_metric: the trainer's.
        """
        vivid_fraction, hue_entropy = colorfulness_terms(completions, self.hue, self.entropy_over)
        if log_metric is not None:
            log_metric("vivid_fraction", vivid_fraction.mean().item())
            log_metric("hue_entropy", hue_entropy.mean().item())
        return (vivid_fraction * hue_entropy).tolist()


@naming_arguments
def fidelity_reward(completions: list[Picture], references: list[Picture | None], **kwargs) -> list[float | None]:
    """Minus the mean squared error against the true photo in [-1, 1]: 0 for the photo itself, -4 at the worst.

    It is what keeps a model that is tuned for colour from painting what is not there. Not in the paper. This and not the
    PSNR, which grows without bound as the error vanishes: one sample that happens to be right would outweigh all others.
    `None` where there is no reference.
    """
    return [
        None if reference is None else -4 * mean_squared_error(image, reference)  # [-1, 1] is twice as wide as [0, 1]
        for image, reference in zip(completions, references, strict=True)
    ]
