"""Object detection data: folders in COCO's JSON form, and the class names of data sets in the Hub's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.coco_boxes import make_box_rows
from vision_rl.data.coco_categories import read_categories
from vision_rl.data.frames import Frame
from vision_rl.data.stored_rows import stored_rows


CLASS_FIELDS = ("category", "categories", "label", "labels", "category_id")  # what Hub data sets call it


def load_coco_detection(
    images_dir: str | Path,
    annotation_file: str | Path,
    *,
    on_bad_row: OnBadRow = "raise",
    frame: Frame = "auto",
    follow_symlinks: bool = False,
) -> datasets.Dataset:
    """The rows of a COCO-style folder, an image each, images without a box included, in the order of the JSON.

    The JSON and the headers of the images are read once. The rows then lie on disk, in the cache of `datasets`, and are
    found again by path, size and time of the JSON, and made anew when an image has changed.

    Boxes are brought to the picture as `datasets` shows it: it turns photos by their EXIF orientation, and the JSON may be
    for the pixels as stored, or for a larger copy. They are turned or scaled where one reading makes them all fit, with a
    warning; see `frame`. A box that leaves its picture is clipped to it, with a warning. Crowd boxes stay, with their flag.
    Segmentations are not read.

    Args:
        images_dir: the folder that the JSON's `file_name`s are in. Names with other slashes, with folders that it does not
            have, or quoted as in a URL are found too, and LVIS's `coco_url`.
        annotation_file: JSON with `images`, `annotations` and `categories`.
        on_bad_row: "raise" an error that counts the annotations and images that cannot be used, and names the first of each
            kind; or "skip" them, with a warning that does. An annotation without a box of some width and height in the
            picture is one, or of an unknown image or category, or the same one once more; and an image that is not there.
        frame: what boxes are measured in, where file and JSON disagree. "auto" compares; otherwise the picture as "shown",
            as "stored", before EXIF turns it, or the "json"'s width and height.
        follow_symlinks: whether images may be symbolic links to files outside of `images_dir`.

    Returns:
        A data set with the columns `image` (opened when a row is read), `image_id` (COCO's), `objects`, lists with
        an entry a box: `bbox` as x, y, width, height in pixels, `category`, `iscrowd`, and `area`, the object's in
        pixels (the box's where the JSON has none); and `frame`, where the JSON measures, which `coco_results` needs:
        `size` (width, height), the EXIF `orientation` that turns it into the picture (1: none), and the picture's
        `image_size`. `category` is an index 0 to C - 1 in the order of COCO's ids, and a
        `ClassLabel`, so that the names travel with the data set: `category_names(dataset)`. COCO's own ids, which
        have gaps, are `category_ids(annotation_file)`: the id of each index.

    Raises:
        ValueError: for another file, two images or categories of one id, two categories of one name, boxes that look like
            x0, y0, x1, y1 or like shares of the image, and bad rows.
        FileNotFoundError: where nothing is wrong but that images are not there.
    """
    settings = {"images": os.path.abspath(images_dir), "bad": on_bad_row, "frame": frame, "links": follow_symlinks}
    bad_rows = BadRows(annotation_file, on_bad_row)
    return stored_rows(
        "boxes",
        annotation_file,
        settings,
        lambda: make_box_rows(images_dir, annotation_file, bad_rows, frame, follow_symlinks),
    )


def category_ids(annotation_file: str | Path) -> list[int | str]:
    """COCO's id of each category index that `load_coco_detection` gives, as results for COCO's server need them."""
    return [category["id"] for category in read_categories(annotation_file)]


def category_names(dataset: datasets.Dataset | datasets.IterableDataset, column: str = "objects") -> list[str] | None:
    """The class names that a data set brings, in order of index; None where it has bare numbers.

    They are found where the Hub's data sets have them: in a `ClassLabel` called `category` or `label` (or the plural,
    or `category_id`) inside `objects`, whether that is a dict of lists or a list of dicts.
    """
    features = dataset.features
    if features is None:  # a stream of unknown type
        return None
    if column not in features:
        raise ValueError(f"The data set has no column {column!r}; it has: {', '.join(map(repr, features))}.")
    fields = _without_lists(features[column])
    if not isinstance(fields, Mapping):
        raise ValueError(f"The column {column!r} has no fields such as `bbox` and `category`; it is {fields}.")
    for name in CLASS_FIELDS:
        feature = _without_lists(fields.get(name))
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names)
    return None


def _without_lists(feature: Any) -> Any:
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return feature
