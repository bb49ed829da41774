"""Object detection data: folders in COCO's JSON form, and the class names of data sets in the Hub's."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image


logger = logging.getLogger(__name__)

_ROUNDING = 0.1  # pixels: COCO's own boxes end up to a hundredth outside their image, which is no news
_BOXES = ("images", "annotations", "categories")
CLASS_FIELDS = ("category", "categories", "label", "labels", "category_id")  # what Hub data sets call it


def load_coco_detection(images_dir: str | Path, annotation_file: str | Path) -> datasets.Dataset:
    """The rows of a COCO-style folder, an image each, images without a box included, in the order of the JSON.

    A box without area (or with NaN) is left out and one that leaves its image is clipped to it, each with a warning
    that counts them. Crowd boxes stay, with their flag. Segmentations are not read.

    Args:
        images_dir: the folder that the JSON's `file_name`s are in.
        annotation_file: JSON with `images`, `annotations` and `categories`.

    Returns:
        A data set with the columns `image` (opened when a row is read), `image_id` (COCO's), and `objects`, lists with
        an entry a box: `bbox` as x, y, width, height in pixels, `category`, `iscrowd`, and `area`, the object's in
        pixels (the box's where the JSON has none). `category` is an index 0 to C - 1 in the order of COCO's ids, and a
        `ClassLabel`, so that the names travel with the data set: `category_names(dataset)`. COCO's own ids, which
        have gaps, are `category_ids(annotation_file)`: the id of each index.

    Raises:
        ValueError: an annotation of an unknown image or category, two categories of one name, or boxes that look
            like x0, y0, x1, y1. What is wrong is counted, and the first is named.
        FileNotFoundError: with the number of images that are not there, and the first.
    """
    content = read_json(annotation_file, _BOXES, "boxes")
    ids = [category["id"] for category in _sorted_categories(content, annotation_file)]
    names = [category["name"] for category in _sorted_categories(content, annotation_file)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{annotation_file} has two categories called {', '.join(map(repr, twice))}: rename one.")
    images = content["images"]
    paths = existing_paths(images_dir, [image["file_name"] for image in images], annotation_file)
    image_ids = distinct_image_ids(images, annotation_file)
    index_of = {category_id: index for index, category_id in enumerate(ids)}
    annotations = content["annotations"]
    refuse_unknown_ids("image", "image_id", annotations, set(image_ids), annotation_file)
    refuse_unknown_ids("category", "category_id", annotations, set(index_of), annotation_file)

    sizes = {image["id"]: _size(image, path) for image, path in zip(images, paths, strict=True)}
    objects = defaultdict(list)
    for annotation, bbox in _cleaned(annotations, sizes, annotation_file):
        area = annotation.get("area")
        box_area = bbox[2] * bbox[3]
        if area is None or not math.isfinite(area):
            area = box_area
        elif bbox != annotation["bbox"]:  # clipped
            area = min(area, box_area)
        entry = {
            "bbox": bbox,
            "category": index_of[annotation["category_id"]],
            "iscrowd": annotation.get("iscrowd", 0),
            "area": area,
        }
        objects[annotation["image_id"]].append(entry)
    fields = {
        "bbox": datasets.List(datasets.Value("float64"), length=4),
        "category": datasets.ClassLabel(names=names),
        "iscrowd": datasets.Value("int64"),
        "area": datasets.Value("float64"),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": image_id_feature(image_ids),
            "objects": {name: datasets.List(field) for name, field in fields.items()},
        }
    )
    columns = {
        "image": paths,
        "image_id": image_ids,
        "objects": [{name: [entry[name] for entry in objects[i]] for name in fields} for i in image_ids],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def category_ids(annotation_file: str | Path) -> list[int]:
    """COCO's id of each category index that `load_coco_detection` gives, as results for COCO's server need them."""
    return [
        category["id"] for category in _sorted_categories(read_json(annotation_file, _BOXES, "boxes"), annotation_file)
    ]


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


def read_json(annotation_file: str | Path, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    """The content of a file that has these keys at its top level; `what` it is of, for the error."""
    if not Path(annotation_file).is_file():
        raise FileNotFoundError(f"There is no annotation file {annotation_file}.")
    with open(annotation_file, encoding="utf-8") as file:
        content = json.load(file)
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(
            f"{annotation_file} is no COCO file of {what}: it has no {', '.join(map(repr, absent))} at its top level."
        )
    return content


def distinct_image_ids(images: list[dict], annotation_file: str | Path) -> list:
    """The ids of the file's images, which must differ."""
    ids = [image["id"] for image in images]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{annotation_file} has {len(ids) - len(set(ids))} images whose id is taken.")
    return ids


def image_id_feature(ids: list) -> datasets.Value:
    """COCO's ids are numbers, those of others may be strings."""
    return datasets.Value("string" if any(isinstance(i, str) for i in ids) else "int64")


def existing_paths(images_dir: str | Path, names: list[str], annotation_file: str | Path) -> list[str]:
    """The paths of the images, or an error that counts those that are not there."""
    paths = [Path(images_dir) / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of {annotation_file} are not there; the first: {missing[0]}."
        )
    return [str(path) for path in paths]


def _sorted_categories(content: dict[str, Any], annotation_file: str | Path) -> list[dict[str, Any]]:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{annotation_file} has {len(ids) - len(set(ids))} categories whose id is taken.")
    return categories


def refuse_unknown_ids(kind: str, key: str, annotations: list[dict], known: set, annotation_file: str | Path) -> None:
    unknown = [annotation for annotation in annotations if annotation[key] not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(annotations)} annotations of {annotation_file} have a {kind} that is not in the "
            f"file; the first: annotation {unknown[0].get('id')} with {key} {unknown[0][key]!r}."
        )


def _size(image: dict[str, Any], path: str) -> tuple[int, int]:
    """Width and height, from the JSON if it has them, else from the image's header."""
    if "width" in image and "height" in image:
        return image["width"], image["height"]
    with Image.open(path) as opened:
        return opened.size


def _cleaned(
    annotations: list[dict], sizes: dict[Any, tuple[int, int]], annotation_file: str | Path
) -> list[tuple[dict, list[float]]]:
    """The annotations that have a box, with the part of it that is in the image."""
    kept, degenerate, outside, as_corners = [], [], [], []
    for annotation in annotations:
        bbox = _finite_box(annotation.get("bbox"))
        width, height = sizes[annotation["image_id"]]
        clipped = None if bbox is None else _clip(bbox, width, height)
        if bbox is None or clipped is None:
            degenerate.append(annotation)
            continue
        x, y, w, h = bbox
        if max(-x, -y, x + w - width, y + h - height) > _ROUNDING:
            outside.append(annotation)
            if 0 <= x < w <= width and 0 <= y < h <= height:
                as_corners.append(annotation)
        kept.append((annotation, clipped))
    if len(as_corners) > len(annotations) / 2:
        raise ValueError(
            f"{len(outside)} of {len(annotations)} boxes of {annotation_file} leave their image, and would not if they "
            "were x0, y0, x1, y1: make them x, y, width, height, as COCO has them. The first: annotation "
            f"{as_corners[0].get('id')} with bbox {as_corners[0]['bbox']}."
        )
    for what, cases in (("have no area in their image and are left out", degenerate), ("are clipped to it", outside)):
        if cases:
            reach = "" if cases is degenerate else "reach out of their image and "
            logger.warning(
                f"{len(cases)} of {len(annotations)} boxes of {annotation_file} {reach}{what}; the first: annotation "
                f"{cases[0].get('id')} with bbox {cases[0].get('bbox')}."
            )
    return kept


def _finite_box(bbox: Any) -> list[float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    numbers = [math.nan if value is None else float(value) for value in bbox]
    return numbers if all(map(math.isfinite, numbers)) else None


def _clip(bbox: list[float], width: int, height: int) -> list[float] | None:
    """The part of the box that is in the image; the box itself where that is all of it; None for nothing."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return None
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x1 <= x0 or y1 <= y0:
        return None
    return bbox if (x0, y0, x1, y1) == (x, y, x + w, y + h) else [x0, y0, x1 - x0, y1 - y0]
