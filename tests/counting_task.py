"""A task in one file, for the command line and for the trainers: how many bright squares are in a picture?"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from transformers import BatchFeature

from vision_rl import VisionProcessor


class CountingProcessor(VisionProcessor):
    """Writes the number of bright squares in a picture as one token: id = count + 1. Id 0 starts the decoder."""

    target_columns = ("count",)
    vocab_size = 6
    completion_length = 1
    suppress_tokens = (0,)

    def __init__(self, image_processor):
        super().__init__(image_processor)

    def __call__(self, images, seeds=None, count=None):
        batch = {"pixel_values": self.image_processor(images, return_tensors="pt")["pixel_values"]}
        if count is not None:
            batch["labels"] = torch.tensor([[c + 1] for c in count])
        return BatchFeature(batch)

    def batch_decode(self, sequences, **kwargs):
        return [ids[0] - 1 for ids in sequences]

    def draw(self, image, completion, reference=None, width=None):
        return ImageOps.expand(image, completion, "red")


def closeness_reward(completions, references, **kwargs):
    return [1.0 - abs(c - r) / 4 for c, r in zip(completions, references, strict=True)]


def counting_error(predictions, references):
    return {"mean_absolute_error": float(np.mean(np.abs(np.subtract(predictions, references))))}


def squares(count, seed=0):
    rng = np.random.default_rng(seed)
    shown = np.array([np.isin(range(4), rng.permutation(4)[: rng.integers(0, 5)]) for _ in range(count)])
    square = np.pad(np.full((1, 12, 12), 255, np.uint8), ((0, 0), (2, 2), (2, 2)))
    pictures = [Image.fromarray(pixels).convert("RGB") for pixels in np.kron(shown.reshape(-1, 2, 2), square)]
    return Dataset.from_dict({"image": pictures, "count": shown.sum(1).tolist()})


# --- what the command line needs of a task --------------------------------------------------------------------------
Processor = CountingProcessor
REWARDS = {"closeness": lambda processor, rows: closeness_reward}


@dataclass
class Options:
    num_pictures: int = 200


def load_data(options, split):
    return squares(options.num_pictures) if split == "train" else squares(50, seed=1)


def make_processor(options, image_processor, rows):
    return CountingProcessor(image_processor)


def make_metric(processor):
    return counting_error


def save_results(predictions, rows, processor, folder):
    counts = {str(row["image_id"]): count for row, count in zip(rows, predictions, strict=True)}
    (folder / "counts.json").write_text(json.dumps(counts))
