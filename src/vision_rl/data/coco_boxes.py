"""Read the boxes of a COCO file as columns, check them, convert them to pixels of their pictures, and make rows."""

import math
from array import array
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vision_rl.data.bad_rows import BadRows
from vision_rl.data.coco_categories import distinct_names, read_categories
from vision_rl.data.coco_images import CocoImages, frame_column, id_feature, image_column, left_out, places, shortened
from vision_rl.data.fields import BadField, a_field, as_flag, as_number, is_missing
from vision_rl.data.frames import FRAME_FEATURE, Frame, Frames, choose_frames, to_picture
from vision_rl.data.image_files import Headers, find_images, read_headers
from vision_rl.data.json_entries import read_entries
from vision_rl.data.stored_rows import Rows


_ROUNDING = 0.1  # pixels: COCO's own boxes end up to a hundredth of a pixel outside their image, without a warning


class BoxAnnotations:
    """The annotations of a file as columns. An unusable annotation is added to `bad_rows`, and its box is NaN."""

    def __init__(self, bad_rows: BadRows):
        self.bad_rows = bad_rows
        self.ids: list[Any] = []
        self.image_ids: list[Any] = []
        self.category_ids: list[Any] = []
        self.other_fields: set[str] = set()  # all fields of annotations without a box
        self._boxes, self._areas, self._crowds = array("d"), array("d"), array("q")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def boxes(self) -> np.ndarray:
        """The boxes `(m, 4)` as x, y, width, height."""
        return np.array(self._boxes, np.float64).reshape(-1, 4)

    @property
    def areas(self) -> np.ndarray:
        """The areas `(m,)`; NaN where the file has none."""
        return np.array(self._areas, np.float64)

    @property
    def crowds(self) -> np.ndarray:
        return np.array(self._crowds, np.int64)

    def check(self, annotation_file: str | Path) -> None:
        """Raise `ValueError` if the file has no boxes because its annotations are captions or panoptic segments."""
        other = [kind for kind in ("caption", "segments_info") if kind in self.other_fields]
        if other and np.isnan(self.boxes).all():
            loader = {"caption": "load_coco_captions", "segments_info": "load_coco_panoptic"}[other[0]]
            raise ValueError(
                f"{annotation_file} has no boxes: its annotations have a `{other[0]}`. Read it with {loader}."
            )

    def name_of(self, index: int) -> str:
        return _named({"id": self.ids[index]})

    def add(self, entry: Any) -> None:
        """Add one entry of `annotations`."""
        if not isinstance(entry, dict):
            self.bad_rows.add(
                "annotations", "are not objects with fields", f"number {len(self) + 1}: {shortened(entry)}"
            )
            entry, box, area, crowd = {}, None, math.nan, 0
        else:
            box, area, crowd = self._read(entry)
        self.ids.append(entry.get("id"))
        self.image_ids.append(entry.get("image_id"))
        self.category_ids.append(entry.get("category_id"))
        self._boxes.extend(box or (math.nan,) * 4)
        self._areas.append(area)
        self._crowds.append(crowd)

    def _read(self, entry: dict[str, Any]) -> tuple[tuple[float, ...] | None, float, int]:
        bbox, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd")
        if is_missing(bbox):
            self.other_fields |= entry.keys()
            told = "have a `segmentation` and no `bbox` (pycocotools.mask.toBbox makes one)"
            self.bad_rows.add("annotations", told if entry.get("segmentation") else "have no `bbox`", _named(entry))
            return None, math.nan, 0
        field, value = "bbox", bbox
        try:
            if not isinstance(bbox, list) or len(bbox) != 4:
                raise BadField("is not four numbers")
            box = tuple(map(as_number, bbox))
            if min(box[2:]) <= 0:
                raise BadField("has no width or height")
            field, value = "area", area
            number = math.nan if is_missing(area) else as_number(area)
            if number < 0:
                raise BadField("is negative")
            field, value = "iscrowd", crowd
            return box, number, as_flag(crowd)
        except BadField as error:
            self.bad_rows.add(
                "annotations",
                f"have {a_field(field)} that {error}",
                f"{_named(entry)} with {field} {shortened(value)}",
            )
            return None, math.nan, 0


def _named(entry: dict[str, Any]) -> str:
    return f"annotation {shortened(entry.get('id'))}"


@dataclass(frozen=True)
class _Boxes:
    """The k boxes of a file that can be used."""

    bbox: np.ndarray  # (k, 4) as x, y, width, height
    area: np.ndarray  # (k,), NaN where the file has none
    crowd: np.ndarray  # (k,)
    label: np.ndarray  # (k,), the index of the category
    image: np.ndarray  # (k,), the index of the image in the file
    number: np.ndarray  # (k,), the index of the annotation in the file

    def __getitem__(self, which: np.ndarray) -> "_Boxes":
        return _Boxes(*(getattr(self, field.name)[which] for field in fields(self)))

    @property
    def corners(self) -> np.ndarray:
        """The boxes `(k, 4)` as x0, y0, x1, y1."""
        return np.concatenate([self.bbox[:, :2], self.bbox[:, :2] + self.bbox[:, 2:]], axis=1)


def make_box_rows(
    images_dir: str | Path, annotation_file: str | Path, bad_rows: BadRows, frame: Frame, follow_symlinks: bool
) -> Rows:
    """Make the rows of `load_coco_detection`, whose arguments these are."""
    entries: list[Any] = []
    images, annotations = CocoImages(bad_rows), BoxAnnotations(bad_rows)
    handlers = {"images": images.add, "annotations": annotations.add, "categories": entries.append}
    read_entries(annotation_file, "COCO's boxes", handlers)
    images.check(annotation_file)
    annotations.check(annotation_file)
    categories = read_categories(annotation_file, entries)
    names = distinct_names(categories, annotation_file)
    paths = find_images(images_dir, images.names, bad_rows, follow_symlinks=follow_symlinks, one_each=True)
    headers = read_headers(paths, bad_rows)
    kept = headers.readable

    boxes = _joined(annotations, images.ids, [category["id"] for category in categories])
    boxes = boxes[kept[boxes.image]]
    _refuse_shares(boxes, annotation_file)
    frames, conflicts = choose_frames(headers, images.sizes, boxes.corners, boxes.image, frame)
    notes = []
    for conflict in conflicts:
        examples = [
            _sizes_told(place, paths, headers, images.sizes) for place in np.flatnonzero(conflict.pictures).tolist()
        ]
        if conflict.is_open:
            kept = kept & ~conflict.pictures
            for example in examples:
                bad_rows.add("images", conflict.what, example)
        else:
            notes.append(f"{len(examples)} of {images.count} images {conflict.what}; the first: {examples[0]}.")
    boxes = boxes[kept[boxes.image]]
    notes += _leaving(boxes, frames, annotations, annotation_file)
    boxes = _in_pictures(boxes, frames, headers.shown, annotations)
    skipped = bad_rows.settle({"images": images.count, "annotations": len(annotations)})
    if not len(boxes.label):
        notes.append("It has no box that can be used.")

    rows = np.flatnonzero(kept)
    if not len(rows):
        raise ValueError(f"{annotation_file} has no image that can be used.")
    ids = [images.ids[row] for row in rows]
    features = {
        "image": datasets.Image(),
        "image_id": id_feature(ids, annotation_file),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=names)),
            "iscrowd": datasets.List(datasets.Value("int64")),
            "area": datasets.List(datasets.Value("float64")),
        },
        "frame": FRAME_FEATURE,
    }
    columns = {
        "image": image_column([paths[row] for row in rows]),
        "image_id": pa.array(ids),
        "objects": _objects(boxes, kept),
        "frame": frame_column(frames, headers.shown, rows),
    }
    gone = left_out(images_dir, images.names, kept)
    return Rows(columns, datasets.Features(features), [f"{annotation_file}: {note}" for note in notes] + skipped, gone)


def _joined(annotations: BoxAnnotations, image_ids: list[Any], category_ids: list[Any]) -> _Boxes:
    """Return the annotations that have a box, a known image and a known category, without repeated ones."""
    name_of, bad_rows = annotations.name_of, annotations.bad_rows
    image = places("an image", "image_id", annotations.image_ids, image_ids, name_of, bad_rows)
    label = places("a category", "category_id", annotations.category_ids, category_ids, name_of, bad_rows)
    boxes = _Boxes(annotations.boxes, annotations.areas, annotations.crowds, label, image, np.arange(len(image)))
    boxes = boxes[(image >= 0) & (label >= 0) & ~np.isnan(boxes.bbox[:, 0])]
    seen: dict[Any, int] = {}
    again = np.zeros(len(boxes.label), bool)
    for place, number in enumerate(boxes.number):
        first = seen.setdefault(str(annotations.ids[number]), place) if annotations.ids[number] is not None else place
        again[place] = first != place and all(
            np.array_equal(values[first], values[place]) for values in (boxes.bbox, boxes.label, boxes.image)
        )
    for number in boxes.number[again]:
        bad_rows.add("annotations", "occur twice", name_of(number))
    return boxes[~again]


def _refuse_shares(boxes: _Boxes, annotation_file: str | Path) -> None:
    corners = boxes.corners
    if len(corners) and corners.min() >= 0 and corners.max() <= 1:
        raise ValueError(
            f"{annotation_file}: all {len(corners)} boxes lie within the first pixel of their images: are they shares of "
            "width and height? COCO's boxes are in pixels."
        )


def _sizes_told(place: int, paths: list[str | None], headers: Headers, json_sizes: np.ndarray) -> str:
    (width, height), told = headers.sizes[place], json_sizes[place]
    orientation = headers.orientation[place]
    turned = "" if orientation == 1 else f" and EXIF orientation {orientation}"
    said = f", the JSON says {told[0]} x {told[1]}" if told.min() > 0 else ""
    return f"{paths[place]} has {width} x {height} pixels{turned}{said}"


def _leaving(boxes: _Boxes, frames: Frames, annotations: BoxAnnotations, annotation_file: str | Path) -> list[str]:
    """Return a note about boxes that leave their frame, or no note if none does.

    Raises:
        ValueError: if more than half of the boxes leave their frame, but would not if they were x0, y0, x1, y1.
    """
    size = frames.size[boxes.image]
    x, y, w, h = boxes.bbox.T
    leaves = (boxes.corners[:, :2] < -_ROUNDING).any(1) | (boxes.corners[:, 2:] > size + _ROUNDING).any(1)
    as_corners = leaves & (x >= 0) & (y >= 0) & (x < w) & (y < h) & (w <= size[:, 0]) & (h <= size[:, 1])
    of = f"{int(leaves.sum())} of {len(leaves)} boxes"
    if as_corners.sum() > len(leaves) / 2:
        raise ValueError(
            f"{of} of {annotation_file} leave their image, but would not if they "
            "were x0, y0, x1, y1: convert them to x, y, width, height, as in COCO. The first: "
            f"{_box_told(boxes, int(np.argmax(as_corners)), annotations)}."
        )
    if not leaves.any():
        return []
    first = _box_told(boxes, int(np.argmax(leaves)), annotations)
    return [f"{of} reach out of their image and are clipped to it; the first: {first}."]


def _in_pictures(boxes: _Boxes, frames: Frames, shown: np.ndarray, annotations: BoxAnnotations) -> _Boxes:
    """Convert boxes to pixels of their pictures and clip them; boxes outside of their picture go to `bad_rows`.

    The area of a box that changes is scaled with the box, up to the box's own area. An area that is missing or 0
    becomes the box's own area.
    """
    own = Frames(frames.size[boxes.image], frames.orientation[boxes.image])
    size = shown[boxes.image]
    moved = ((own.size != size).any(1) | (own.orientation != 1))[:, None]
    corners = np.where(moved, to_picture(boxes.corners, own, size), boxes.corners)
    clipped = np.concatenate([corners[:, :2].clip(0), np.minimum(corners[:, 2:], size)], axis=1)
    changed = moved | (clipped != corners).any(1, keepdims=True)
    bbox = np.where(changed, np.concatenate([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]], axis=1), boxes.bbox)
    scale = size.prod(1) / own.size.prod(1)
    of_box = bbox[:, 2] * bbox[:, 3]
    area = np.where(
        boxes.area > 0, np.where(changed[:, 0], np.minimum(boxes.area * scale, of_box), boxes.area), of_box
    )
    inside = bbox[:, 2:].min(1, initial=1) > 0
    for place in np.flatnonzero(~inside).tolist():
        annotations.bad_rows.add(
            "annotations", "have a `bbox` outside of their image", _box_told(boxes, place, annotations)
        )
    return replace(boxes, bbox=bbox, area=area)[inside]


def _box_told(boxes: _Boxes, place: int, annotations: BoxAnnotations) -> str:
    sides = ", ".join(f"{side:g}" for side in boxes.bbox[place])
    return f"{annotations.name_of(boxes.number[place])} with bbox [{sides}]"


def _objects(boxes: _Boxes, kept: np.ndarray) -> pa.StructArray:
    """Return the boxes as lists, with one list for each picture that is kept."""
    boxes = boxes[np.argsort(boxes.image, kind="stable")]
    ends = np.append(0, np.cumsum(np.bincount(boxes.image, minlength=len(kept))[kept]))
    values = {
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.bbox.reshape(-1)), 4),
        "category": pa.array(boxes.label),
        "iscrowd": pa.array(boxes.crowd),
        "area": pa.array(boxes.area),
    }
    lists = [pa.ListArray.from_arrays(pa.array(ends, pa.int32()), value) for value in values.values()]
    return pa.StructArray.from_arrays(lists, list(values))
