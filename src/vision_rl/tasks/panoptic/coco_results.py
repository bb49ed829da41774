"""Panoptic maps in COCO's form, a PNG an image and one JSON, as its evaluation server and panopticapi read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.data.bad_rows import BadRows
from vision_rl.data.fields import ids_and_pngs
from vision_rl.data.frames import inverse, turned_map
from vision_rl.data.image_files import find_images, read_headers
from vision_rl.data.json_entries import read_entries
from vision_rl.tasks.panoptic.segments import (
    Segmentation,
    ids_from_rgb,
    read_segments,
    resized,
    rgb_from_ids,
    unlisted_ids,
)


def save_coco_panoptic(
    predictions: Sequence[Segmentation],
    image_ids: Sequence[int | str],
    masks_dir: str | Path,
    annotation_file: str | Path,
    image_sizes: Sequence[tuple[int, int]] | None = None,
    frames: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes `<masks_dir>/<image id>.png` for each image, numbers in twelve digits as COCO has them, and the JSON.

    Args:
        predictions: `(map, segments_info)` an image, at the image's own size; or of any size, given `image_sizes` or `frames`.
            Those of a trainer's `predict` have the model's.
        image_ids: COCO's id of each image, each once. Texts stay texts, and must be names of files.
        masks_dir: folder of the PNGs; made where it is not there. For the server it must be named as the JSON.
        annotation_file: the JSON, with `annotations`: `image_id`, `file_name`, and `segments_info` with `id` and
            `category_id`.
        image_sizes: (width, height) of each image, to which its map is brought (`resized`).
        frames: the column `frame` of `load_coco_panoptic`'s rows, instead of `image_sizes`: maps are brought to the size of
            the true ones, and turned back where those are for photos as stored.

    Raises:
        ValueError: for a map with an id that its `segments_info` lacks, for numbers of things that differ, and for ids that
            are no names of files in `masks_dir`.
    """
    for name, given in (("image_ids", image_ids), ("image_sizes", image_sizes), ("frames", frames)):
        if given is not None and len(given) != len(predictions):
            raise ValueError(f"There are {len(predictions)} predictions but {len(given)} {name}: give one of each.")
    if image_sizes is not None and frames is not None:
        raise ValueError("Give either image_sizes or frames, not both: frames have the sizes too.")
    ids, names = ids_and_pngs("image_ids", image_ids, num_digits=12)
    if image_sizes is not None:
        frames = [{"size": size, "orientation": 1} for size in image_sizes]
    folder = Path(masks_dir)
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for index, (prediction, image_id, name) in enumerate(zip(predictions, ids, names, strict=True)):
        segments = read_segments(prediction if frames is None else _in_frame(prediction, frames[index]))
        unlisted = unlisted_ids(segments)
        if len(unlisted):
            raise ValueError(
                f"Image {image_id!r}: {len(unlisted)} ids of the map are not in its segments_info; the first is {unlisted[0]}."
            )
        Image.fromarray(rgb_from_ids(segments.map)).save(folder / name, format="PNG")
        pairs = zip(segments.ids.tolist(), segments.categories.tolist(), strict=True)
        infos = [{"id": segment_id, "category_id": category} for segment_id, category in pairs]
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": infos})
    Path(annotation_file).write_text(json.dumps({"annotations": annotations}))


def read_coco_panoptic(
    masks_dir: str | Path, annotation_file: str | Path
) -> tuple[list[Segmentation], list[int | str]]:
    """The predictions and image ids that a folder of PNGs and a JSON hold, those of `save_coco_panoptic` or others'.

    Raises:
        ValueError: for another file, and for PNGs that are no pictures or not in the folder.
        FileNotFoundError: for PNGs that are not there.
    """
    annotations: list[Any] = []
    read_entries(annotation_file, "COCO's panoptic maps", {"annotations": annotations.append})
    for annotation in annotations:
        needed = {"image_id", "file_name", "segments_info"}
        if not isinstance(annotation, dict) or not needed <= set(annotation):
            raise ValueError(f"{annotation_file}: an annotation needs {sorted(needed)}; this one is {annotation}.")
    bad_rows = BadRows(annotation_file, "raise")
    paths = find_images(masks_dir, [str(annotation["file_name"]) for annotation in annotations], bad_rows, "maps")
    read_headers(paths, bad_rows, "maps")
    bad_rows.settle({"maps": len(annotations)})
    predictions = []
    for path, annotation in zip(paths, annotations, strict=True):
        with Image.open(str(path)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        predictions.append((ids_from_rgb(pixels), annotation["segments_info"]))
    return predictions, [annotation["image_id"] for annotation in annotations]


def _in_frame(prediction: Segmentation, frame: Mapping[str, Any]) -> Segmentation:
    """The map at the size of the true one, turned as that is."""
    orientation = inverse(frame["orientation"])
    width, height = frame["size"] if orientation < 5 else frame["size"][::-1]
    ids, segments_info = resized(prediction, (height, width))
    return turned_map(ids, orientation), segments_info
