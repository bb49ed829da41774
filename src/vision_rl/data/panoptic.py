"""Panoptic data in COCO's form: a JSON, and for each image a PNG whose colours are segment ids."""

import os
from pathlib import Path
from typing import Any, Literal

import datasets

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.coco_categories import read_categories
from vision_rl.data.coco_maps import make_map_rows
from vision_rl.data.fields import BadField, as_flag
from vision_rl.data.stored_rows import stored_rows


def load_coco_panoptic(
    images_dir: str | Path,
    masks_dir: str | Path,
    annotation_file: str | Path,
    *,
    on_bad_row: OnBadRow = "raise",
    frame: Literal["auto", "shown", "stored"] = "auto",
    follow_symlinks: bool = False,
) -> datasets.Dataset:
    """Load a COCO panoptic file: one row for each image that has a map, in the order of the JSON's images.

    The rows are made once and kept on disk, as in `load_coco_detection`. `datasets` turns a photo by its EXIF
    orientation. If the sizes show that a map belongs to the photo as stored, the map is turned like the photo.

    Args:
        images_dir: the folder of the images.
        masks_dir: the folder of the PNGs.
        annotation_file: JSON with `images` (`id`, `file_name`), `annotations` (`image_id`, `file_name`,
            `segments_info`) and `categories`.
        on_bad_row: "raise" an error that counts the maps and images that cannot be used, and names the first of each
            kind; or "skip" them, with a warning that does the same. A map is bad if its size differs from its photo's,
            if a segment has an unknown category or no id, or if two of its segments have the same id. Images are bad
            if they have a file in common, and a map each.
        frame: what maps show where a photo has an EXIF orientation: "shown" is the photo as shown, "stored" is the
            photo before the turn, and "auto" decides by the sizes, with a warning if the sizes do not tell (a square
            photo, or one that is upside down).
        follow_symlinks: whether images and maps may be symbolic links to files outside of their folder.

    Returns:
        A data set with the columns `image`, `segmentation`, `image_id`, `segments_info` and `frame`. `image` and
        `segmentation` are opened when a row is read. `segments_info` is a list of dicts with `id` (R + 256 G + 65536 B
        of the map's pixels; 0 is void), COCO's own `category_id`, and `iscrowd`. `frame` tells how the map lies in the
        file, which `save_coco_panoptic` needs (see `load_coco_detection`).

    Raises:
        ValueError: for a file that is no COCO panoptic file, for two images or categories of one id, and for bad rows.
        FileNotFoundError: if there is no such folder or annotation file, or if the only fault is that images or maps
            are missing.
    """
    folders = {"images": os.path.abspath(images_dir), "masks": os.path.abspath(masks_dir)}
    settings = {**folders, "bad": on_bad_row, "frame": frame, "links": follow_symlinks}
    bad_rows = BadRows(annotation_file, on_bad_row)
    if frame not in ("auto", "shown", "stored"):
        raise ValueError(f'frame must be "auto", "shown" or "stored"; it is {frame!r}.')
    return stored_rows(
        "panoptic",
        annotation_file,
        settings,
        lambda: make_map_rows(images_dir, masks_dir, annotation_file, bad_rows, frame, follow_symlinks),
    )


def panoptic_categories(annotation_file: str | Path) -> list[dict[str, Any]]:
    """Return the categories of a COCO panoptic file in the order of their ids: dicts with `id`, `name` and `isthing`.

    Raises:
        ValueError: for a category without `isthing`, or with an id that is no whole number.
    """
    categories = read_categories(annotation_file)
    for category in categories:
        try:
            if "isthing" not in category:
                raise BadField("lacks `isthing`")
            category["isthing"] = as_flag(category["isthing"])
            if not isinstance(category["id"], int):
                raise BadField("has an `id` that is not a whole number")
        except BadField as error:
            raise ValueError(f"{annotation_file} is not a panoptic file: its category {category} {error}.") from error
    return categories
