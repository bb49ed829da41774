"""The data of the two tasks with a stage I, panoptic maps and colours: a folder, or scenes of handwritten digits."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, DigitScenes, digit_scenes
from vision_rl.data.panoptic import load_coco_panoptic, panoptic_categories
from vision_rl.data.photos import load_photos
from vision_rl.tasks.colorization import without_grey


SCENES = {"size": 64, "max_digits": 3, "min_height": 26, "max_height": 40}


@dataclass
class DataArguments:
    images_dir: str | None = None  # photos, nested folders included; a tenth is validation, another tenth is test
    masks_dir: str | None = None  # the maps of the photos; needs annotation_file, which is COCO's panoptic JSON
    annotation_file: str | None = None
    on_bad_annotation: Literal["raise", "skip"] = "raise"  # for the photos and their maps
    num_train_images: int = 1_000_000  # of scenes, where none of the above is given; drawn when they are asked for
    fresh_scenes: bool = True  # others for what starts from an MLE model; false: those it has learned
    num_eval_images: int = 300  # of validation, and of test as well
    num_test_images: int | None = None  # of test, if the number differs


class Splits(NamedTuple):
    """`later` is for what starts from a model that was trained on `train`: the same photos, scenes as `fresh_scenes` says."""

    train: Any
    later: Any
    validation: Dataset
    test: Dataset


def panoptic_data(args: DataArguments) -> Splits:
    """Rows with `image`, `segmentation` and `segments_info`."""
    folder = (args.images_dir, args.masks_dir, args.annotation_file)
    if all(folder):
        return _split(load_coco_panoptic(*folder, on_bad_row=args.on_bad_annotation))
    if any(folder):
        raise ValueError("A folder in COCO's form needs all of --images_dir, --masks_dir and --annotation_file.")
    return _scenes(args, ["segmentation"])


def categories_of(args: DataArguments) -> list[dict]:
    """COCO's list of the categories of `panoptic_data`."""
    return list(PANOPTIC_CATEGORIES) if args.annotation_file is None else panoptic_categories(args.annotation_file)


def colorization_data(args: DataArguments) -> Splits:
    """Rows with `image`; photos that are grey already are left out."""
    if args.images_dir is not None:
        photos = load_photos(args.images_dir, on_bad_row=args.on_bad_annotation)
        return _split(without_grey(photos, on_bad_row=args.on_bad_annotation))
    return _scenes(args, [])


def _split(rows: Dataset) -> Splits:
    rows = rows.shuffle(seed=0)
    first, second = round(0.8 * len(rows)), round(0.9 * len(rows))
    train = rows.select(range(first))
    return Splits(train, train, rows.select(range(first, second)), rows.select(range(second, len(rows))))


def _scenes(args: DataArguments, annotations: list[str]) -> Splits:
    drawn = SCENES | {"annotations": annotations}
    train, later = (DigitScenes("train", args.num_train_images, seed, **drawn) for seed in (0, int(args.fresh_scenes)))
    validation, test = (
        digit_scenes(split, count, **drawn)
        for split, count in (
            ("validation", args.num_eval_images),
            ("test", args.num_test_images or args.num_eval_images),
        )
    )
    return Splits(train, later, validation, test)
