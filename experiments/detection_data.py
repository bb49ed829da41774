"""The data of the detection examples: a folder in COCO's form, a data set by name, or scenes of handwritten digits.

The scenes come in three situations:

* complete: one to four digits, every box labelled. Imitation and reward ask for the same.
* incomplete: the same images, but half of the training boxes are missing, once and for all, as annotators miss
  objects. Images of validation and test have all their boxes.
* crowded: one to eight small digits that hide one another, under noise; every box labelled. A model cannot be sure.
"""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset, load_dataset

from vision_rl.data.coco import category_names, load_coco_detection
from vision_rl.data.digit_scenes import CATEGORIES, digit_scenes, with_missing_boxes


Split = Literal["train", "validation", "test"]
Situation = Literal["complete", "incomplete", "crowded"]
_FEW = {"max_digits": 4, "min_height": 14, "max_height": 26}
_SCENES: dict[Situation, dict] = {
    "complete": _FEW,
    "incomplete": _FEW,
    "crowded": {
        "max_digits": 8,
        "min_height": 10,
        "max_height": 20,
        "max_overlap": 0.6,
        "crowding": 0.5,
        "noise": 0.1,
    },
}


@dataclass
class DataArguments:
    images_dir: str | None = None  # with annotation_file, in COCO's form
    annotation_file: str | None = None
    eval_images_dir: str | None = None  # of eval_annotation_file; default: images_dir
    eval_annotation_file: str | None = None  # default: a tenth of the training images is kept for evaluation
    on_bad_row: Literal["raise", "skip"] = "raise"  # of annotation files
    dataset_name: str | None = None  # rows with `image` and `objects: {bbox, category}`
    situation: Situation = "complete"  # of digit scenes, without any of the above
    num_train_images: int = 40_000  # digit scenes
    image_size: int = 48
    max_boxes: int = 8


def detection_data(args: DataArguments) -> tuple[Dataset, Dataset, list[str] | None]:
    """Training rows, evaluation rows, the names of the categories."""
    folder = (args.images_dir, args.annotation_file, args.eval_images_dir, args.eval_annotation_file)
    if args.images_dir is not None and args.annotation_file is not None:
        train, evaluated = _coco_data(args, args.images_dir, args.annotation_file)
        return train, evaluated, category_names(train)
    if any(folder):
        raise ValueError("A folder in COCO's form needs --images_dir and --annotation_file.")
    if args.dataset_name is not None:
        splits = load_dataset(args.dataset_name)
        evaluated = splits["validation" if "validation" in splits else "test"]
        return splits["train"], evaluated, category_names(splits["train"])
    train = situation_scenes(args.situation, "train", args.num_train_images, args.image_size)
    return train, situation_scenes(args.situation, "validation", 500, args.image_size), list(CATEGORIES)


def _coco_data(args: DataArguments, images_dir: str, annotation_file: str) -> tuple[Dataset, Dataset]:
    rows = load_coco_detection(images_dir, annotation_file, on_bad_row=args.on_bad_row)
    if args.eval_annotation_file is not None:
        eval_dir = args.eval_images_dir or images_dir
        return rows, load_coco_detection(eval_dir, args.eval_annotation_file, on_bad_row=args.on_bad_row)
    if args.eval_images_dir is not None:
        raise ValueError("--eval_images_dir needs --eval_annotation_file.")
    rows = rows.shuffle(seed=0)
    count = max(1, len(rows) // 10)
    return rows.select(range(count, len(rows))), rows.select(range(count))


def situation_scenes(situation: Situation, split: Split, num_images: int, size: int = 48) -> Dataset:
    """Rows with `image` and `objects`; the first images of a larger set are those of a smaller one."""
    scenes = digit_scenes(split, num_images, size=size, **_SCENES[situation])
    return with_missing_boxes(scenes, 0.5) if (situation, split) == ("incomplete", "train") else scenes
