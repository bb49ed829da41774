"""Detection for the command line and the pipeline: its data, its options, its rewards by name (`vision_rl.task`)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset

from vision_rl.data.coco import category_names, load_coco_detection
from vision_rl.data.digit_scenes import digit_scenes
from vision_rl.data.fields import distinct_ids
from vision_rl.tasks.detection.average_precision import coco_map
from vision_rl.tasks.detection.coco_results import coco_results
from vision_rl.tasks.detection.processing import DetectionProcessor
from vision_rl.tasks.detection.rewards import AveragePrecisionReward, RecallReward


Processor = DetectionProcessor


@dataclass
class Options:
    """Where the boxes are, and how they become tokens."""

    images_dir: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    annotation_file: str | None = field(default=None, metadata={"help": "COCO's JSON of the training boxes."})
    eval_images_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation images."})
    eval_annotation_file: str | None = field(default=None, metadata={"help": "COCO's JSON of the evaluation boxes."})
    categories_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON with COCO's `categories`, from which their ids are taken by name. None: the annotation files."
        },
    )
    scenes: int | None = field(
        default=None,
        metadata={"help": "In place of a folder: number of training scenes of handwritten digits, 48 pixels."},
    )
    num_categories: int | None = field(
        default=None,
        metadata={"help": "Number of categories that the data must have; a dry run without data takes it from here."},
    )
    num_bins: int | None = field(
        default=None, metadata={"help": "Number of bins of a coordinate. None: 1000, as in the paper."}
    )
    max_boxes: int | None = field(
        default=None, metadata={"help": "Largest number of boxes in an image. None: 100, as in the paper."}
    )
    box_order: Literal["random", "sorted"] | None = field(
        default=None,
        metadata={"help": "Order in which the boxes of an image are learned: random or sorted. None: random."},
    )
    resize: Literal["stretch", "letterbox"] | None = field(
        default=None,
        metadata={"help": "How an image is fitted into the model's square: stretch or letterbox. None: stretch."},
    )
    score: Literal["confidence", "likelihood", "class"] | None = field(
        default=None,
        metadata={
            "help": "How a box is scored: confidence, likelihood or class. None: likelihood, until tuning for mAP has "
            "taught confidences."
        },
    )
    stop_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Leave a box out only where the model gives leaving it out more than this probability. None: 0."
        },
    )
    absent_weight: float | None = field(
        default=None, metadata={"help": "Weight of the tokens of absent boxes in the MLE loss. None: 1."}
    )
    flip: bool | None = field(default=None, metadata={"help": "Mirror half of the training images of MLE. None: no."})
    scale_jitter: list[float] | None = field(
        default=None,
        metadata={"help": "Smallest and largest factor by which MLE scales its training images. Pix2Seq: 0.3 2."},
    )
    trust_boxes: bool | None = field(
        default=None,
        metadata={
            "help": "Take boxes for what they should be also where they look like another unit or form. None: no."
        },
    )
    follow_symlinks: bool = field(
        default=False, metadata={"help": "Read images that are symbolic links to files outside of their folder."}
    )
    frame: Literal["auto", "shown", "stored", "json"] = field(
        default="auto",
        metadata={
            "help": "Pixels in which boxes are measured where file and JSON disagree: of the picture as shown, as stored before "
            "EXIF turns it, or at the JSON's size (json). auto: the only one of these that the boxes fit."
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
    if options.annotation_file is not None or options.eval_annotation_file is not None:
        train = split == "train"
        images, boxes = (
            (options.images_dir, options.annotation_file)
            if train
            else (options.eval_images_dir, options.eval_annotation_file)
        )
        if boxes is None:
            return None
        if images is None:
            raise ValueError(f"{boxes} needs the folder of its images: {'' if train else 'eval_'}images_dir.")
        return load_coco_detection(
            images,
            boxes,
            on_bad_row=options.on_bad_annotation,
            frame=options.frame,
            follow_symlinks=options.follow_symlinks,
        )
    if options.images_dir is not None or options.eval_images_dir is not None:
        raise ValueError("A folder of images needs the JSON of their boxes: annotation_file, eval_annotation_file.")
    if options.scenes is not None:
        count = options.scenes if split == "train" else 500
        return digit_scenes(split, count, size=48, max_digits=4, min_height=14, max_height=26)  # type: ignore[arg-type]
    return None


def make_processor(options: Options, image_processor: Any, rows: Dataset | None) -> DetectionProcessor:
    names = _category_names(options, rows)
    if options.num_categories not in (None, len(names)):
        raise ValueError(f"The data has {len(names)} categories, but num_categories is {options.num_categories}.")
    chosen: dict[str, Any] = {"score": "likelihood"}
    for option in fields(options):
        value = getattr(options, option.name)
        if value is not None and option.name in _OF_PROCESSOR:
            chosen[option.name] = value
    processor = DetectionProcessor(image_processor, names, **chosen)
    if rows is not None:
        processor.take_options(options)
    return processor


def _category_names(options: Options, rows: Dataset | None) -> list[str]:
    if rows is None:
        if options.num_categories is None:
            raise ValueError("Without the data its number of categories is not known: give num_categories.")
        return [f"category {place}" for place in range(options.num_categories)]
    names = category_names(rows)
    if names is None:
        raise ValueError("The categories of the data set are numbers without names: make the column a ClassLabel.")
    return names


_OF_PROCESSOR = (
    "num_bins",
    "max_boxes",
    "box_order",
    "resize",
    "score",
    "absent_weight",
    "flip",
    "scale_jitter",
    "stop_threshold",
    "trust_boxes",
)


def _recall(processor: DetectionProcessor, rows: Dataset) -> RecallReward:
    return RecallReward(processor.num_bins, processor.num_labels)


def _average_precision(processor: DetectionProcessor, rows: Any, **as_released: Any) -> AveragePrecisionReward:
    if processor.score == "likelihood":  # what MLE ends with
        processor.score = "confidence"  # which this reward teaches; the option `score` is set again afterwards
    if isinstance(rows, IterableDataset):
        rows = list(rows.select_columns("objects"))
    counts = processor.count_classes(rows)
    return AveragePrecisionReward(processor.num_bins, processor.num_labels, class_counts=counts, **as_released)


REWARDS = {
    "recall": _recall,
    "map": _average_precision,
    "map_as_released": partial(_average_precision, confidence_among="vocabulary", released_total=True),
}


def make_metric(processor: DetectionProcessor) -> Callable[..., dict]:
    return partial(coco_map, num_labels=processor.num_labels)


def check_image_ids(image_ids: Sequence) -> None:
    """Raise `ValueError` for ids that `save_results` could not write."""
    distinct_ids("image_id", image_ids)


def save_results(predictions: Sequence, rows: list[dict], processor: DetectionProcessor, folder: Path) -> None:
    """Write `detections.json` for COCO's server and pycocotools' `loadRes`, with the name of each category."""
    frames = [row["frame"] for row in rows if "frame" in row] or None  # of a folder in COCO's form
    results = coco_results(predictions, [row["image_id"] for row in rows], processor.category_ids, frames)
    name_of = dict(zip(processor.category_ids, processor.categories, strict=True))
    results = [{**result, "category_name": name_of[result["category_id"]]} for result in results]
    (folder / "detections.json").write_text(json.dumps(results))
