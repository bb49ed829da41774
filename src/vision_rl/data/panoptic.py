"""Panoptic data: folders in COCO's form, a JSON and a PNG an image whose colours are segment ids."""

from pathlib import Path
from typing import Any

import datasets

from vision_rl.data.coco import distinct_image_ids, existing_paths, image_id_feature, read_json, refuse_unknown_ids


_KEYS = ("images", "annotations", "categories")


def load_coco_panoptic(images_dir: str | Path, masks_dir: str | Path, annotation_file: str | Path) -> datasets.Dataset:
    """The rows of a COCO panoptic file, one an image that has a map, in the order of the JSON's images.

    Args:
        images_dir: the folder of the images.
        masks_dir: the folder of the PNGs.
        annotation_file: JSON with `images` (`id`, `file_name`), `annotations` (`image_id`, `file_name`,
            `segments_info`) and `categories`.

    Returns:
        A data set with the columns `image` and `segmentation`, both opened when a row is read, `image_id`, and
        `segments_info`, a list of dicts with `id` (R + 256 G + 65536 B of the map's pixels; 0 is void), `category_id`,
        COCO's own, and `iscrowd`.

    Raises:
        ValueError: two images of one id or two maps of one image, an annotation of an unknown image, a segment of an
            unknown category, or two segments of one id. What is wrong is counted, and the first is named.
        FileNotFoundError: with the number of images or maps that are not there, and the first.
    """
    content = read_json(annotation_file, _KEYS, "panoptic maps")
    annotations = content["annotations"]
    distinct_image_ids(content["images"], annotation_file)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    refuse_unknown_ids("image", "image_id", annotations, set(names), annotation_file)
    of_image = {annotation["image_id"]: annotation for annotation in annotations}
    if len(of_image) < len(annotations):
        raise ValueError(
            f"{annotation_file} has {len(annotations) - len(of_image)} annotations of an image that has one already."
        )
    _check_segments(annotations, {category["id"] for category in content["categories"]}, annotation_file)

    image_ids = [image_id for image_id in names if image_id in of_image]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": image_id_feature(image_ids),
            "segmentation": datasets.Image(),
            "segments_info": datasets.List({key: datasets.Value("int64") for key in ("id", "category_id", "iscrowd")}),
        }
    )
    columns = {
        "image": existing_paths(images_dir, [names[image_id] for image_id in image_ids], annotation_file),
        "image_id": image_ids,
        "segmentation": existing_paths(masks_dir, [of_image[i]["file_name"] for i in image_ids], annotation_file),
        "segments_info": [
            [
                {"id": segment["id"], "category_id": segment["category_id"], "iscrowd": segment.get("iscrowd", 0)}
                for segment in of_image[image_id]["segments_info"]
            ]
            for image_id in image_ids
        ],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def panoptic_categories(annotation_file: str | Path) -> list[dict[str, Any]]:
    """The categories of a COCO panoptic file, in the order of their ids: dicts with `id`, `name` and `isthing`."""
    categories = read_json(annotation_file, ("categories",), "panoptic maps")["categories"]
    for category in categories:
        if not {"id", "name", "isthing"} <= set(category):
            raise ValueError(
                f"{annotation_file} is no panoptic file: its category {category} lacks `id`, `name` or `isthing`."
            )
    return [
        {key: category[key] for key in ("id", "name", "isthing")}
        for category in sorted(categories, key=lambda category: category["id"])
    ]


def _check_segments(annotations: list[dict], known: set, annotation_file: str | Path) -> None:
    unknown, taken, count = [], [], 0
    for annotation in annotations:
        seen = set()
        for segment in annotation["segments_info"]:
            case = (annotation["image_id"], segment["id"], segment["category_id"])
            count += 1
            if segment["category_id"] not in known:
                unknown.append(case)
            if segment["id"] in seen:
                taken.append(case)
            seen.add(segment["id"])
    for cases, what in ((unknown, "a category that is not in the file"), (taken, "an id that its image has twice")):
        if cases:
            image_id, segment_id, category_id = cases[0]
            raise ValueError(
                f"{len(cases)} of {count} segments of {annotation_file} have {what}; the first: image {image_id!r}, "
                f"segment {segment_id}, category_id {category_id}."
            )
