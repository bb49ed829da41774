"""The data of the detection experiments: scenes of handwritten digits in four situations.

* complete: one to four digits, every box labelled. Imitation and reward ask for the same.
* incomplete: the same images, but half of the training boxes are missing, once and for all, as annotators miss
  objects. Images of validation and test have all their boxes.
* crowded: one to eight small digits that hide one another, under noise; every box labelled. A model cannot be sure.
* hard: the crowded scenes under more noise, for the tokens of the paper: 1000 bins, in random order, and more places
  than boxes.
"""

from typing import Literal

from datasets import Dataset
from torch.utils.data import Subset

from vision_rl.data.digit_scenes import DigitScenes, digit_scenes, with_missing_boxes
from vision_rl.data.handwriting import Split


Situation = Literal["complete", "incomplete", "crowded", "hard"]
_FEW = {"max_digits": 4, "min_height": 14, "max_height": 26}
_MANY = {"max_digits": 8, "min_height": 10, "max_height": 20, "max_overlap": 0.6, "crowding": 0.5}
_SCENES: dict[Situation, dict] = {
    "complete": _FEW,
    "incomplete": _FEW,
    "crowded": _MANY | {"noise": 0.1},
    "hard": _MANY | {"noise": 0.25},
}


def situation_scenes(situation: Situation, split: Split, num_images: int, size: int = 48) -> Dataset:
    """Rows with `image` and `objects`; the first images of a larger set are those of a smaller one."""
    scenes = digit_scenes(split, num_images, size=size, **_SCENES[situation])
    return with_missing_boxes(scenes, 0.5) if (situation, split) == ("incomplete", "train") else scenes


def unseen_scenes(situation: Situation, first: int, num_images: int, size: int = 48) -> Subset:
    """Training scenes of the numbers `first` and up, drawn when they are asked for: behind those that MLE has seen."""
    missing = 0.5 if situation == "incomplete" else 0.0
    scenes = DigitScenes("train", first + num_images, size=size, missing_boxes=missing, **_SCENES[situation])
    return Subset(scenes, range(first, first + num_images))
