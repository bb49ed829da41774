"""Made-up photos as JPEGs on disk, and a processor that resizes them, to measure what loading data costs."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from transformers import BatchFeature, ViTImageProcessorPil

from vision_rl import VisionProcessor


PHOTO_SIZE = (640, 480)  # the size of most of COCO's photos


class PhotoProcessor(VisionProcessor):
    """Resizes photos and scales them to [-1, 1]; completions are not decoded."""

    def __init__(self, image_processor, **kwargs):
        super().__init__(image_processor, **kwargs)

    @classmethod
    def of_size(cls, size: int) -> "PhotoProcessor":
        return cls(ViTImageProcessorPil(size={"height": size, "width": size}))

    def __call__(self, images, seeds=None, **targets) -> BatchFeature:
        return BatchFeature({"pixel_values": self.image_processor(list(images), return_tensors="pt")["pixel_values"]})

    def batch_decode(self, sequences, **kwargs) -> list:
        return list(sequences)


def make_photos(folder: Path, count: int, seed: int = 0) -> datasets.Dataset:
    """`count` rows with JPEGs of 640 x 480 pixels, smooth with some noise. Each has about 100 kB, as COCO's have."""
    rng = np.random.default_rng(seed)
    width, height = PHOTO_SIZE

    def photo() -> bytes:
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(PHOTO_SIZE, Image.Resampling.BICUBIC))
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        return file.getvalue()

    rows = {"image": [{"bytes": photo(), "path": None} for _ in range(count)]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    made.save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))
