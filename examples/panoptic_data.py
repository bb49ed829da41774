"""The data of the panoptic examples: a folder in COCO's form, or scenes of handwritten digits on textures."""

from dataclasses import dataclass

from datasets import Dataset

from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.data.panoptic import load_coco_panoptic, panoptic_categories


SCENES = {"size": 64, "max_digits": 6, "min_height": 16, "max_height": 28, "annotations": ["segmentation"]}


@dataclass
class DataArguments:
    images_dir: str | None = (
        None  # with masks_dir and annotation_file, COCO's panoptic JSON; a tenth is for evaluation
    )
    masks_dir: str | None = None
    annotation_file: str | None = None
    num_train_images: int = 20_000  # digit scenes, without any of the above
    num_eval_images: int = 300


def panoptic_data(args: DataArguments) -> tuple[Dataset, Dataset, list[dict]]:
    """Training rows, evaluation rows, the categories."""
    if args.annotation_file is not None:
        rows = load_coco_panoptic(args.images_dir, args.masks_dir, args.annotation_file).shuffle(seed=0)
        num_train = round(0.9 * len(rows))
        categories = panoptic_categories(args.annotation_file)
        return rows.select(range(num_train)), rows.select(range(num_train, len(rows))), categories
    train, validation = (
        digit_scenes(split, count, **SCENES)
        for split, count in (("train", args.num_train_images), ("validation", args.num_eval_images))
    )
    return train, validation, list(PANOPTIC_CATEGORIES)
