"""How colourful pictures are, as an evaluate module: `evaluate.load(vision_rl.metric_path("colorfulness"))`."""

import datasets
import evaluate

from vision_rl import metric_module
from vision_rl.citation import CITATION
from vision_rl.tasks.colorization.colorfulness import colorization_metrics, uint8_pixels_of


_DESCRIPTION = """
The share of vivid pixels of a picture, the entropy of its hues and the product of both, which is what colorization models
are tuned for (Pinto et al., 2023); beside them Hasler and Suesstrunk's colourfulness, which nothing is tuned for, and the
PSNR to the true photos where they are given.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of images): PIL images, paths, or arrays (H, W, 3) from 0 to 255, of floats from 0 to 1.
    references (list of images): the true photos of the same sizes; None where there is none. Default: none.
    hue (str): "arctan2", the hue angle, or "arctan", which takes opposite hues for one. Default "arctan2".
    entropy_over (str): hues of "all" pixels or of the "vivid" ones. Default "all".
Returns:
    vivid_fraction (float): the share of pixels with a^2 + b^2 > 10 in CIELAB, from 0 to 1.
    hue_entropy (float): entropy of the hue in seven bins, in nats, from 0 to ln 7 = 1.95.
    colorfulness (float): the product of both, the mean over the pictures.
    hasler_colorfulness (float): from 0, grey, to about 100.
    psnr (float): in decibels, 100 for a picture that equals its photo; only with references.
    per_image_vivid_fraction, per_image_hue_entropy, ... (list of float): each of these by picture.
Examples:
    >>> import numpy as np
    >>> colorfulness = evaluate.load(vision_rl.metric_path("colorfulness"))
    >>> flag = np.zeros((2, 4, 3), np.uint8)
    >>> flag[:, 1], flag[:, 2], flag[:, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # a quarter of it is black
    >>> result = colorfulness.compute(predictions=[flag])
    >>> result["vivid_fraction"], round(result["hue_entropy"], 3), round(result["colorfulness"], 3)
    (0.75, 1.386, 1.04)
"""

_CITATION = (
    CITATION
    + """
@inproceedings{hasler2003measuring,
    title = {Measuring colorfulness in natural images},
    author = {Hasler, David and Suesstrunk, Sabine},
    booktitle = {Human Vision and Electronic Imaging VIII},
    year = {2003}
}
"""
)


class Colorfulness(metric_module.MetricModule):
    def _info(self):
        image = datasets.Image()
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": image, "references": image}),
        )

    # datasets keeps a PIL image as the file that it was opened from, or as JPEG again: arrays it keeps exactly

    def add_batch(self, *, predictions=None, references=None):
        """Keeps a batch of images for `compute`."""
        references = [None] * len(predictions) if references is None else references
        super().add_batch(
            predictions=[_exact(image) for image in predictions], references=[_exact(image) for image in references]
        )

    def add(self, *, prediction=None, reference=None):
        """Keeps an image for `compute`."""
        super().add(prediction=_exact(prediction), reference=_exact(reference))

    def _compute(self, predictions, references=None, hue="arctan2", entropy_over="all"):
        return colorization_metrics(predictions, references, hue, entropy_over)


def _exact(image):
    return image if image is None or isinstance(image, str) else uint8_pixels_of(image).numpy()
