"""Object detection data: a loader of folders in COCO's JSON form, and the class names of data sets on the Hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from vision_rl.columns import is_number
from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.coco_boxes import make_box_rows
from vision_rl.data.coco_categories import distinct_names, read_categories
from vision_rl.data.frames import Frame
from vision_rl.data.stored_rows import stored_rows


CLASS_FIELDS = ("category", "categories", "label", "labels", "category_id")  # the names of the class in Hub data sets


def load_coco_detection(
    images_dir: str | Path,
    annotation_file: str | Path,
    *,
    on_bad_row: OnBadRow = "raise",
    frame: Frame = "auto",
    follow_symlinks: bool = False,
) -> datasets.Dataset:
    """Load a COCO-style folder: one row for each image, images without a box included, in the order of the JSON.

    The JSON and the headers of the images are read once. The rows are then stored in the cache of `datasets`, where
    the path, size and time of the JSON identify them, and are made anew when an image has changed.

    Boxes are converted to pixels of the picture as `datasets` shows it. `datasets` turns photos by their EXIF
    orientation, while the boxes of the JSON may belong to the pixels as stored, or to a larger copy. Boxes are turned
    or scaled, with a warning, if exactly one such reading makes all of them fit; see `frame`. A box that leaves its
    picture is clipped to the picture, with a warning. Crowd boxes stay, with their flag. Segmentations are not read.

    Args:
        images_dir: the folder of the images, to which the JSON's `file_name`s are relative. A name with other slashes,
            with folders that `images_dir` does not have, or quoted as in a URL is found too, and so is LVIS's
            `coco_url`.
        annotation_file: JSON with `images`, `annotations` and `categories`.
        on_bad_row: "raise" an error that counts the annotations and images that cannot be used, and names the first of
            each kind; or "skip" them, with a warning that does the same. An annotation is bad if it has no box of some
            width and height in the picture, if its image or category is unknown, or if it repeats another annotation.
            An image is bad if its file is missing or unreadable, or is that of another image too.
        frame: the pixels in which boxes are measured, where file and JSON disagree. "shown" is the picture as shown,
            "stored" is the picture before EXIF turns it, "json" is a picture of the JSON's width and height, and
            "auto" takes the only reading that the boxes fit.
        follow_symlinks: whether images may be symbolic links to files outside of `images_dir`.

    Returns:
        A data set with the columns `image`, `image_id`, `objects` and `frame`. `image` is opened when a row is read,
        and `image_id` is COCO's id. `objects` has lists with an entry for each box: `bbox` as x, y, width, height in
        pixels, `category`, `iscrowd`, and `area`, the object's area in pixels (the box's area where the JSON has
        none). `category` is an index 0 to C - 1 in the order of COCO's ids, and a `ClassLabel`, which keeps the names
        for `category_names(dataset)`. COCO's own ids, which have gaps, are `category_ids(annotation_file)`: the id of
        each index. `frame` tells in which pixels the JSON measures, which `coco_results` needs: `size` (width,
        height), the EXIF `orientation` that turns this frame into the picture (1: none), and the picture's
        `image_size`.

    Raises:
        ValueError: for a file that is no COCO detection file, for two images or categories of one id, for two
            categories of one name, for boxes that look like x0, y0, x1, y1 or like shares of the image, and for bad
            rows.
        FileNotFoundError: if there is no such folder or annotation file, or if the only fault is that images are
            missing.
    """
    settings = {"images": os.path.abspath(images_dir), "bad": on_bad_row, "frame": frame, "links": follow_symlinks}
    bad_rows = BadRows(annotation_file, on_bad_row)
    return stored_rows(
        "boxes",
        annotation_file,
        settings,
        lambda: make_box_rows(images_dir, annotation_file, bad_rows, frame, follow_symlinks),
    )


def category_ids(annotation_file: str | Path, names: Sequence[str] | None = None) -> list[int | str]:
    """Return COCO's id of each category index of `load_coco_detection`; COCO's evaluation server expects these ids.

    Args:
        annotation_file: JSON with `categories`.
        names: the class names of other rows, in the order of their index, whose ids are returned in their order.

    Raises:
        ValueError: for names that the file does not have, and, given names, for two categories of one name.
    """
    categories = read_categories(annotation_file)
    ids = [category["id"] for category in categories]
    if names is None:
        return ids
    id_of = dict(zip(distinct_names(categories, annotation_file), ids, strict=True))
    lacking = [name for name in names if name not in id_of]
    if lacking:
        raise ValueError(
            f"{annotation_file} has no id for {len(lacking)} of the data's {len(names)} categories: "
            f"{', '.join(map(repr, lacking))}. It has {', '.join(map(repr, id_of))}: give both the same names."
        )
    return [id_of[name] for name in names]


def category_names(dataset: datasets.Dataset | datasets.IterableDataset, column: str = "objects") -> list[str] | None:
    """Return the class names in a data set's features, in the order of their index; None if classes are bare numbers.

    The names are those of a `ClassLabel` called `category` or `label` (or the plural, or `category_id`) in the column
    `objects`, as data sets on the Hub have it. The column may be a dict of lists or a list of dicts.

    Raises:
        ValueError: for a column that does not exist or has no fields; and for names in another field than the first of
            these, which classes are read from, where that field has numbers.
    """
    features = dataset.features
    if features is None:  # a stream of unknown type
        return None
    if column not in features:
        raise ValueError(f"The data set has no column {column!r}; it has: {', '.join(map(repr, features))}.")
    fields = _without_lists(features[column])
    if not isinstance(fields, Mapping):
        raise ValueError(f"The column {column!r} has no fields such as `bbox` and `category`; it is {fields}.")
    found = {name: _without_lists(fields[name]) for name in CLASS_FIELDS if name in fields}
    named = next((name for name, feature in found.items() if isinstance(feature, datasets.ClassLabel)), None)
    if named is None:
        return None
    first = next(iter(found))
    if first != named and isinstance(found[first], datasets.Value) and is_number(found[first].pa_type):
        raise ValueError(
            f"The column {column!r} has two fields of classes: `{first}`, from which they are read, has numbers without "
            f"names, and the names are those of `{named}`. Remove one of the two, or give it another name."
        )
    return list(found[named].names)


def _without_lists(feature: Any) -> Any:
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return feature
