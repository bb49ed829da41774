"""Photos without colours, which a data set for colorization leaves out."""

import logging
import os
from pathlib import Path
from typing import Any

import datasets

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.stored_rows import one_process_first
from vision_rl.pictures import rgb_image
from vision_rl.tasks.colorization.processing import GREY_TOLERANCE, is_grey


logger = logging.getLogger(__name__)

_PHOTOS_PER_PROCESS = 1000  # fewer are looked at in this one


def without_grey(
    dataset: datasets.Dataset,
    image_column: str = "image",
    tolerance: int = GREY_TOLERANCE,
    *,
    num_proc: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> datasets.Dataset:
    """The rows whose photo is not grey.

    Opens every photo once, in several processes. Where the data set lies on disk, as those of `load_photos` and `load_dataset`
    do, the result is kept beside it: later starts, and the other processes of this one, find it there.

    Args:
        dataset: rows with a photo.
        image_column: its column.
        tolerance: in a grey photo no channels of a pixel are further apart than this, of 255.
        num_proc: processes that look; `None`: one a core, for thousands of photos.
        on_bad_row: "raise" an error that counts the photos that cannot be read, or "skip" them, with a warning that does.
    """
    feature = dataset.features[image_column]
    photos = dataset.select_columns(image_column)
    if isinstance(feature, datasets.Image):  # opened below, where a broken one stops nothing
        photos = photos.cast_column(image_column, datasets.Image(decode=False))
    cores = num_proc or min(os.cpu_count() or 1, len(dataset) // _PHOTOS_PER_PROCESS)
    beside = Path(dataset.cache_files[0]["filename"]).with_suffix(".grey") if dataset.cache_files else None
    with one_process_first(beside):
        looked = photos.map(
            _look,
            fn_kwargs={"feature": feature, "tolerance": tolerance},
            input_columns=[image_column],
            with_indices=True,
            remove_columns=[image_column],
            features=datasets.Features({"is_grey": datasets.Value("bool"), "fault": datasets.Value("string")}),
            num_proc=cores if cores > 1 else None,
            desc="Looking for grey photos",
        )
    bad_rows = BadRows("The data set", on_bad_row)
    faults, are_grey = looked["fault"][:], looked["is_grey"][:]
    for fault in faults:
        if fault is not None:
            bad_rows.add("photos", "cannot be read", fault)
    for note in bad_rows.settle({"photos": len(dataset)}):
        logger.warning(note)
    pairs = enumerate(zip(are_grey, faults, strict=True))
    return dataset.select([row for row, (grey, fault) in pairs if not grey and fault is None])


def _look(photo: Any, row: int, feature: Any, tolerance: int) -> dict[str, Any]:
    """Whether a photo is grey, or why that is not known."""
    try:
        photo = feature.decode_example(photo) if isinstance(feature, datasets.Image) else photo
        return {"is_grey": is_grey(rgb_image(photo, row), tolerance), "fault": None}
    except Exception as error:  # Pillow's readers of broken files raise whatever they stumble over
        path = photo.get("path") if isinstance(photo, dict) else None
        return {"is_grey": False, "fault": f"row {row}{f', {path}' if path else ''} ({error})"}
