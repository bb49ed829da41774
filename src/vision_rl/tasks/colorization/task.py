"""Colorization for the command line and the pipeline: its data, its options, its rewards by name (`vision_rl.task`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Image

from vision_rl.data.digit_scenes import digit_scenes
from vision_rl.data.fields import ids_and_pngs
from vision_rl.data.photos import load_photos
from vision_rl.tasks.colorization.colorfulness import colorization_metrics
from vision_rl.tasks.colorization.grey_photos import without_grey
from vision_rl.tasks.colorization.processing import ColorizationProcessor
from vision_rl.tasks.colorization.rewards import ColorfulnessReward, fidelity_reward


Processor = ColorizationProcessor


@dataclass
class Options:
    """Where the photos are, and what stage I makes of them."""

    images_dir: str | None = field(
        default=None, metadata={"help": "Folder of the training photos; it may hold folders, as ImageNet's does."}
    )
    eval_images_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation photos."})
    drop_grey: bool = field(
        default=False, metadata={"help": "Leave out photos that are grey already. This opens all of them."}
    )
    scenes: int | None = field(
        default=None,
        metadata={"help": "In place of a folder: number of training scenes of handwritten digits, 64 pixels."},
    )
    num_codes: int | None = field(
        default=None, metadata={"help": "Number of codes in stage I's codebook. None: 4096, the paper's."}
    )
    code_len: int | None = field(default=None, metadata={"help": "Number of codes per image. None: 256, the paper's."})
    keep_luminance: bool | None = field(
        default=None,
        metadata={"help": "Give predicted pictures the photo's own lightness. None: no, as in the paper."},
    )
    flip: bool | None = field(default=None, metadata={"help": "Mirror half of the training photos. None: yes."})
    crop_area: list[float] | None = field(
        default=None,
        metadata={"help": "Smallest and largest share of a training photo to cut out. The paper: 0.05 1."},
    )
    antialias: bool | None = field(
        default=None,
        metadata={"help": "Resize with antialiasing. None: yes. For the published models: no."},
    )
    follow_symlinks: bool = field(
        default=False, metadata={"help": "Read photos that are symbolic links to files outside of the folder."}
    )
    on_bad_annotation: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What to do with photos that cannot be used. raise: end with an error. "
            "skip: leave them out and count them."
        },
    )


def load_data(options: Options, split: str) -> Dataset | None:
    folder = options.images_dir if split == "train" else options.eval_images_dir
    if folder is not None:
        rows = load_photos(folder, on_bad_row=options.on_bad_annotation, follow_symlinks=options.follow_symlinks)
        files = rows.cast_column("image", Image(decode=False))["image"]
        names = [Path(file["path"]).relative_to(Path(folder).absolute()).with_suffix("") for file in files]
        rows = rows.add_column("image_id", [name.as_posix().replace("/", "_") for name in names])
        return without_grey(rows, on_bad_row=options.on_bad_annotation) if options.drop_grey else rows
    if options.scenes is None or options.images_dir is not None:
        return None
    count = options.scenes if split == "train" else 300
    size = {"size": 64, "max_digits": 3, "min_height": 26, "max_height": 40}
    return digit_scenes(split, count, annotations=[], **size)  # type: ignore[arg-type]


def make_processor(options: Options, image_processor: Any, rows: Dataset) -> ColorizationProcessor:
    chosen = {name: getattr(options, name) for name in _OF_PROCESSOR if getattr(options, name) is not None}
    return ColorizationProcessor(image_processor, **chosen)


_OF_PROCESSOR = ("num_codes", "code_len", "keep_luminance", "flip", "crop_area", "antialias")

REWARDS = {
    "colorfulness": lambda processor, rows: ColorfulnessReward(),
    "fidelity": lambda processor, rows: fidelity_reward,  # likeness to the photo, which the paper does not pay for
}


def make_metric(processor: ColorizationProcessor) -> Callable[..., dict]:
    return colorization_metrics


def check_image_ids(image_ids: Sequence) -> None:
    """Raise `ValueError` for ids that `save_results` could not write."""
    ids_and_pngs("image_id", image_ids)


def save_results(predictions: Sequence, rows: list[dict], processor: ColorizationProcessor, folder: Path) -> None:
    """A PNG an image at the model's size, in `colorized`."""
    (folder / "colorized").mkdir(exist_ok=True)
    _, names = ids_and_pngs("image_id", [row["image_id"] for row in rows])
    for picture, name in zip(predictions, names, strict=True):
        picture.save(folder / "colorized" / name)
