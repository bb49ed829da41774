"""The colourfulness reward as an evaluate module: `evaluate.load(vision_rl.metric_path("colorfulness_reward"))`."""

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.citation import CITATION
from vision_rl.tasks.colorization.colorfulness import uint8_pixels_of
from vision_rl.tasks.colorization.rewards import ColorfulnessReward


_DESCRIPTION = """
What reward tuning pays for the colours of a picture: the share of vivid pixels times the entropy of the hue. The true photo
does not enter.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of images): PIL images, paths, or arrays (H, W, 3) from 0 to 255, of floats from 0 to 1.
    hue (str): "arctan2", the hue angle, or "arctan", which takes opposite hues for one. Default "arctan2".
    entropy_over (str): hues of "all" pixels or of the "vivid" ones. Default "all".
Returns:
    reward (float): the mean reward.
    rewards (list of float): the reward of each picture, from 0 to ln 7 = 1.95.
Examples:
    >>> import numpy as np
    >>> reward = evaluate.load(vision_rl.metric_path("colorfulness_reward"))
    >>> flag = np.zeros((2, 4, 3), np.uint8)
    >>> flag[:, 1], flag[:, 2], flag[:, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # a quarter of it is black
    >>> result = reward.compute(predictions=[flag, np.full((8, 8, 3), 128, np.uint8)])
    >>> round(result["reward"], 3), [round(value, 3) for value in result["rewards"]]
    (0.52, [1.04, 0.0])
"""


class ColorfulnessRewardModule(metric_module.MetricModule):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Image()}),
        )

    # datasets keeps a PIL image as the file that it was opened from, or as JPEG again: arrays it keeps exactly

    def add_batch(self, *, predictions=None, references=None):
        """Keeps a batch of images for `compute`; the reward has no use for references."""
        super().add_batch(predictions=[_exact(image) for image in predictions])

    def add(self, *, prediction=None, reference=None):
        """Keeps an image for `compute`."""
        super().add(prediction=_exact(prediction))

    def _compute(self, predictions, references=None, hue="arctan2", entropy_over="all"):
        rewards = ColorfulnessReward(hue, entropy_over)(predictions)
        return {"reward": sum(rewards) / len(rewards), "rewards": rewards}


def _exact(image):
    return image if isinstance(image, str) else uint8_pixels_of(image).numpy()
