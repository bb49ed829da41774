"""Read the maps of a COCO panoptic file, check them against their photos, turn them like the photos, and make rows."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, ImageOps

from vision_rl.data.bad_rows import BadRows
from vision_rl.data.coco_categories import read_categories
from vision_rl.data.coco_images import CocoImages, frame_column, id_feature, image_column, left_out, places, shortened
from vision_rl.data.fields import BadField, as_flag, as_id, as_text, read_field
from vision_rl.data.frames import FRAME_FEATURE, Frames
from vision_rl.data.image_files import Headers, find_images, read_headers
from vision_rl.data.json_entries import read_entries
from vision_rl.data.stored_rows import Rows


_NUM_IDS = 2**24  # three bytes of colour


class _Maps:
    """The annotations of a panoptic file. An unusable annotation is added to `bad_rows`, and its name is `None`."""

    def __init__(self, bad_rows: BadRows):
        self.bad_rows = bad_rows
        self.image_ids: list[Any] = []
        self.names: list[str | None] = []
        self.segments: list[list[tuple[int, Any, int]]] = []  # id, category_id and iscrowd of each segment
        self.other_fields: set[str] = set()

    def add(self, entry: Any) -> None:
        """Add one entry of `annotations`."""
        fields = entry if isinstance(entry, dict) else {}
        if "segments_info" not in fields:
            self.other_fields |= fields.keys()
        name, segments = None, []
        try:
            if not isinstance(fields.get("segments_info"), list):
                raise BadField("no list `segments_info`")
            name = read_field(fields, "file_name", as_text)
            segments = [_segment(segment) for segment in fields["segments_info"]]
            if len({segment_id for segment_id, _, _ in segments}) < len(segments):
                raise BadField("two segments with the same id")
        except BadField as error:
            self.bad_rows.add("maps", f"have {error}", f"of image {fields.get('image_id')!r}: {shortened(entry)}")
            name = None
        self.image_ids.append(fields.get("image_id"))
        self.names.append(name)
        self.segments.append(segments)

    def check(self, annotation_file: str | Path, known: set) -> None:
        """Raise `ValueError` if there are no maps; a map with a segment of a category not in `known` is a bad row."""
        if not self.names:
            raise ValueError(f"{annotation_file} has no maps: its list `annotations` is empty.")
        if not any(self.names) and "bbox" in self.other_fields:
            raise ValueError(
                f"{annotation_file} has no maps: its annotations have a `bbox`. Read it with load_coco_detection."
            )
        for index, segments in enumerate(self.segments):
            unknown = [segment for segment in segments if segment[1] not in known]
            if unknown and self.names[index] is not None:
                segment_id, category_id, _ = unknown[0]
                where = f"image {self.image_ids[index]!r}, segment {segment_id}, category_id {category_id!r}"
                self.bad_rows.add("maps", "have a segment of a category that is not in the file", where)
                self.names[index] = None

    def name_of(self, index: int) -> str:
        return f"{self.names[index]}"


def _segment(segment: Any) -> tuple[int, Any, int]:
    """Return the id, the category id and the crowd flag of a segment, or raise `BadField`."""
    if not isinstance(segment, dict):
        raise BadField("a segment that is not an object")
    try:
        segment_id, category_id = read_field(segment, "id", as_id), read_field(segment, "category_id", as_id)
        is_crowd = read_field(segment, "iscrowd", as_flag)
    except BadField as error:
        raise BadField(f"a segment with {error}") from error
    if not isinstance(segment_id, int) or not 0 < segment_id < _NUM_IDS:
        raise BadField(f"a segment with an `id` that is not from 1 to {_NUM_IDS - 1}")
    if not isinstance(category_id, int):
        raise BadField("a segment with a `category_id` that is not a whole number")
    return segment_id, category_id, is_crowd


def make_map_rows(
    images_dir: str | Path,
    masks_dir: str | Path,
    annotation_file: str | Path,
    bad_rows: BadRows,
    frame: str,
    follow_symlinks: bool,
) -> Rows:
    """Make the rows of `load_coco_panoptic`, whose arguments these are."""
    entries: list[Any] = []
    images, maps = CocoImages(bad_rows), _Maps(bad_rows)
    read_entries(
        annotation_file,
        "COCO's panoptic maps",
        {"images": images.add, "annotations": maps.add, "categories": entries.append},
    )
    images.check(annotation_file)
    maps.check(annotation_file, {category["id"] for category in read_categories(annotation_file, entries)})
    map_of = _map_of(images, maps)
    names = [name if place >= 0 else None for name, place in zip(images.names, map_of, strict=True)]
    paths = find_images(images_dir, names, bad_rows, follow_symlinks=follow_symlinks, one_each=True)
    map_names = [maps.names[place] if place >= 0 else None for place in map_of]
    map_paths = find_images(masks_dir, map_names, bad_rows, "maps", follow_symlinks)
    photos, masks = read_headers(paths, bad_rows), read_headers(map_paths, bad_rows, "maps")
    kept = photos.readable & masks.readable
    frames, fits, notes = _frames(photos, masks, kept, frame, paths)
    for place in np.flatnonzero(kept & ~fits).tolist():
        (width, height), (other_width, other_height) = masks.shown[place], photos.shown[place]
        where = f"{map_paths[place]} is {width} x {height}, {paths[place]} {other_width} x {other_height}"
        bad_rows.add(
            "maps", "have another size than their photo (resize them by the nearest pixel, which mixes no ids)", where
        )
    kept &= fits
    pictures, readable = _turned_maps(map_paths, frames, kept, bad_rows)
    skipped = bad_rows.settle({"images": images.count, "maps": len(maps.names)})
    kept &= readable
    rows = np.flatnonzero(kept).tolist()
    if not rows:
        raise ValueError(f"{annotation_file} has no map that can be used.")

    ids = [images.ids[row] for row in rows]
    keys = ("id", "category_id", "iscrowd")
    segments = [[dict(zip(keys, segment, strict=True)) for segment in maps.segments[map_of[row]]] for row in rows]
    features = {
        "image": datasets.Image(),
        "image_id": id_feature(ids, annotation_file),
        "segmentation": datasets.Image(),
        "segments_info": datasets.List({key: datasets.Value("int64") for key in keys}),
        "frame": FRAME_FEATURE,
    }
    columns = {
        "image": image_column([paths[row] for row in rows]),
        "image_id": pa.array(ids),
        "segmentation": image_column([map_paths[row] for row in rows], [pictures.get(row) for row in rows]),
        "segments_info": pa.array(segments, pa.list_(pa.struct([(key, pa.int64()) for key in keys]))),
        "frame": frame_column(frames, photos.shown, np.array(rows)),
    }
    gone = left_out(images_dir, names, kept) + left_out(masks_dir, map_names, kept)
    return Rows(columns, datasets.Features(features), [f"{annotation_file}: {note}" for note in notes] + skipped, gone)


def _map_of(images: CocoImages, maps: _Maps) -> np.ndarray:
    """Return the index of each image's map `(n,)`, or -1 for an image without a usable map."""
    map_of = np.full(len(images.ids), -1)
    bad_rows = maps.bad_rows
    image_of = places("an image", "image_id", maps.image_ids, images.ids, maps.name_of, bad_rows, noun="maps")
    for place, image in enumerate(image_of.tolist()):
        if image >= 0 and map_of[image] >= 0:
            where = f"{maps.names[place]} of image {images.ids[image]!r}"
            bad_rows.add("maps", "are of an image that already has a map", where)
        elif image >= 0 and maps.names[place] is not None:
            map_of[image] = place
    return map_of


def _frames(
    photos: Headers, masks: Headers, kept: np.ndarray, frame: str, paths: list[str | None]
) -> tuple[Frames, np.ndarray, list[str]]:
    """Return the frame of each map, whether the map then has its photo's size `(n,)`, and notes for the user."""
    has_turn = kept & (photos.orientation != 1)
    is_shown, is_stored = (masks.shown == photos.shown).all(1), (masks.shown == photos.sizes).all(1)
    sided = has_turn & (is_shown != is_stored)  # only in these maps does the size tell whether they are turned
    as_stored = sided & is_stored
    notes = []
    untold = has_turn & is_shown & is_stored
    if untold.any() and frame == "auto":
        habits = set(is_stored[sided].tolist())
        if habits == {True}:  # one tool wrote all maps, so the other maps are as stored, too
            as_stored |= untold
        elif habits != {False}:
            notes.append(
                f"{untold.sum()} of {len(kept)} images have an EXIF orientation, and their size does not tell whether their "
                'maps are for the photos as shown or as stored. They are read as shown: look at one, and pass frame="stored" '
                f"if that is wrong. The first: {paths[int(np.argmax(untold))]}."
            )
    if frame != "auto":
        as_stored = has_turn & (frame == "stored")
    if as_stored.any():
        notes.append(
            f"{as_stored.sum()} of {len(kept)} images are turned by EXIF, but their maps are for the pixels as stored: the "
            f"maps are turned as well; the first: {paths[int(np.argmax(as_stored))]}."
        )
    return (
        Frames(masks.shown, np.where(as_stored, photos.orientation, 1)),
        np.where(as_stored, is_stored, is_shown),
        notes,
    )


def _turned_maps(
    paths: list[str | None], frames: Frames, kept: np.ndarray, bad_rows: BadRows
) -> tuple[dict[int, bytes], np.ndarray]:
    """Turn the maps whose frame is turned; return their PNGs by index, and which of all maps could be read `(n,)`."""
    pictures, readable = {}, kept.copy()
    for place in np.flatnonzero(kept & (frames.orientation != 1)).tolist():
        try:
            with Image.open(str(paths[place])) as opened:
                picture = ImageOps.exif_transpose(opened)
            picture.getexif()[ExifTags.Base.Orientation] = int(frames.orientation[place])
            file = io.BytesIO()
            ImageOps.exif_transpose(picture).save(file, "PNG")
        except Exception as error:  # Pillow's readers of broken files raise whatever they stumble over
            bad_rows.add("maps", "cannot be read", f"{paths[place]} ({error})")
            readable[place] = False
        else:
            pictures[place] = file.getvalue()
    return pictures, readable
