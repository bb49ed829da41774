"""Panoptic segmentation for the command line and the pipeline: its data, its options, its reward (`vision_rl.task`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.data.fields import ids_and_pngs
from vision_rl.data.panoptic import load_coco_panoptic, panoptic_categories
from vision_rl.tasks.panoptic.coco_results import save_coco_panoptic
from vision_rl.tasks.panoptic.processing import PanopticProcessor
from vision_rl.tasks.panoptic.quality import PanopticQuality
from vision_rl.tasks.panoptic.rewards import PanopticReward


Processor = PanopticProcessor


@dataclass
class Options:
    """Where the maps are, and what stage I makes of them."""

    images_dir: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    masks_dir: str | None = field(default=None, metadata={"help": "Folder of the training maps, as PNGs."})
    annotation_file: str | None = field(default=None, metadata={"help": "COCO's panoptic JSON of the training maps."})
    eval_images_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation images."})
    eval_masks_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation maps, as PNGs."})
    eval_annotation_file: str | None = field(
        default=None, metadata={"help": "COCO's panoptic JSON of the evaluation maps."}
    )
    categories_file: str | None = field(
        default=None,
        metadata={"help": "JSON with COCO's `categories`, for a data set that has none. None: annotation_file."},
    )
    scenes: int | None = field(
        default=None,
        metadata={"help": "In place of a folder: number of training scenes of handwritten digits, 64 pixels."},
    )
    num_categories: int | None = field(
        default=None,
        metadata={"help": "Number of categories that the data must have; a dry run without data takes it from here."},
    )
    max_instances: int | None = field(
        default=None, metadata={"help": "Number of channels for instances. None: 100, the paper's."}
    )
    num_codes: int | None = field(
        default=None, metadata={"help": "Number of codes in stage I's codebook. None: 4096, the paper's."}
    )
    code_len: int | None = field(default=None, metadata={"help": "Number of codes per image. None: 256, the paper's."})
    flip: bool | None = field(default=None, metadata={"help": "Mirror half of the training images. None: yes."})
    crop_area: list[float] | None = field(
        default=None,
        metadata={"help": "Smallest and largest share of a training image to cut out. The paper: 0.05 1."},
    )
    min_fraction: float | None = field(
        default=None,
        metadata={"help": "Predicted instances that cover at most this share of the image become void. None: 0."},
    )
    follow_symlinks: bool = field(
        default=False,
        metadata={"help": "Read images and maps that are symbolic links to files outside of their folder."},
    )
    frame: Literal["auto", "shown", "stored"] = field(
        default="auto",
        metadata={
            "help": "What maps show where a photo has an EXIF orientation: the photo as shown, or as stored before the turn. "
            "auto: told from the sizes."
        },
    )
    on_bad_annotation: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What to do with annotations and images that cannot be used. raise: end with an error. "
            "skip: leave them out and count them."
        },
    )


def load_data(options: Options, split: str) -> Dataset | None:
    prefix = "" if split == "train" else "eval_"
    names = [f"{prefix}{name}" for name in ("images_dir", "masks_dir", "annotation_file")]
    folder = [getattr(options, name) for name in names]
    if all(folder):
        return load_coco_panoptic(
            *folder,
            on_bad_row=options.on_bad_annotation,
            frame=options.frame,
            follow_symlinks=options.follow_symlinks,
        )
    if any(folder):
        missing = [name for name, value in zip(names, folder, strict=True) if value is None]
        raise ValueError(f"A folder in COCO's form needs {', '.join(names)}; missing: {', '.join(missing)}.")
    if options.scenes is None or options.annotation_file is not None:
        return None
    count = options.scenes if split == "train" else 300
    size = {"size": 64, "max_digits": 3, "min_height": 26, "max_height": 40}
    return digit_scenes(split, count, annotations=["segmentation"], **size)  # type: ignore[arg-type]


def make_processor(options: Options, image_processor: Any, rows: Dataset | None) -> PanopticProcessor:
    categories = _categories(options, rows)
    if options.num_categories not in (None, len(categories)):
        raise ValueError(f"The data has {len(categories)} categories, but num_categories is {options.num_categories}.")
    chosen = {name: getattr(options, name) for name in _OF_PROCESSOR if getattr(options, name) is not None}
    processor = PanopticProcessor(image_processor, categories, **chosen)
    if rows is not None:
        processor.take_options(options)
    return processor


def _categories(options: Options, rows: Dataset | None) -> list[dict[str, Any]]:
    file = options.categories_file or options.annotation_file or options.eval_annotation_file
    if rows is None and options.num_categories is not None:
        return [{"id": place, "name": f"category {place}", "isthing": 1} for place in range(options.num_categories)]
    if file is not None:
        return panoptic_categories(file)
    if options.scenes is not None:
        return list(PANOPTIC_CATEGORIES)
    raise ValueError("A data set's maps do not say what their categories are: give categories_file, COCO's JSON.")


_OF_PROCESSOR = ("max_instances", "num_codes", "code_len", "flip", "crop_area", "min_fraction")

REWARDS = {"pq": lambda processor, rows: PanopticReward()}


def make_metric(processor: PanopticProcessor) -> PanopticQuality:
    return PanopticQuality(processor.categories)


def check_image_ids(image_ids: Sequence) -> None:
    """Raise `ValueError` for ids that `save_results` could not write."""
    ids_and_pngs("image_id", image_ids)


def save_results(predictions: Sequence, rows: list[dict], processor: PanopticProcessor, folder: Path) -> None:
    """A folder `panoptic` of PNGs at the images' sizes and `panoptic.json`, as panopticapi and COCO's server read them."""
    frames = [row["frame"] for row in rows if "frame" in row]  # of a folder in COCO's form
    sizes = {"frames": frames} if frames else {"image_sizes": [row["image_size"] for row in rows]}
    ids = [row["image_id"] for row in rows]
    save_coco_panoptic(predictions, ids, folder / "panoptic", folder / "panoptic.json", **sizes)
