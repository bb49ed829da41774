"""Captioning data: folders in COCO's JSON form, and Karpathy's split of COCO and Flickr."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.coco_images import CocoImages, id_feature, image_column, left_out, places, shortened
from vision_rl.data.fields import BadField, as_id, as_text, is_missing, read_field
from vision_rl.data.image_files import find_images, read_headers
from vision_rl.data.json_entries import read_entries
from vision_rl.data.stored_rows import Rows, stored_rows


def load_coco_captions(
    images_dir: str | Path,
    annotation_file: str | Path,
    *,
    on_bad_row: OnBadRow = "raise",
    follow_symlinks: bool = False,
) -> datasets.Dataset:
    """Load a COCO captions file: one row for each image that has a caption, in the order of the JSON.

    The rows are made once and kept on disk, as in `load_coco_detection`.

    Args:
        images_dir: the folder of the images, to which the JSON's `file_name`s are relative.
        annotation_file: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
        on_bad_row: "raise" an error that counts all captions without a text or a known image, and all images that are
            missing or unreadable; or "skip" them, with a warning that counts them.
        follow_symlinks: whether images may be symbolic links to files outside of `images_dir`.

    Returns:
        A data set with the columns `image` (opened when a row is read), `image_id` and `captions`, a list of strings.

    Raises:
        ValueError: for a file that is no COCO captions file, for two images of one id, and for bad rows.
        FileNotFoundError: if there is no such folder or annotation file, or if the only fault is that images are
            missing.
    """
    settings = {"images": os.path.abspath(images_dir), "bad": on_bad_row, "links": follow_symlinks}
    bad_rows = BadRows(annotation_file, on_bad_row)

    def make() -> Rows:
        images, captions = CocoImages(bad_rows), _Captions(bad_rows)
        read_entries(annotation_file, "COCO's captions", {"images": images.add, "annotations": captions.add})
        images.check(annotation_file)
        captions.check(annotation_file)
        of_image: list[list[str]] = [[] for _ in images.ids]
        image = places("an image", "image_id", captions.image_ids, images.ids, captions.name_of, bad_rows)
        for place, text in zip(image, captions.texts, strict=True):
            if place >= 0 and text is not None:
                of_image[place].append(text)
        names = [name if texts else None for name, texts in zip(images.names, of_image, strict=True)]
        totals = {"images": images.count, "annotations": len(captions.texts)}
        return _rows(images_dir, names, images.ids, of_image, bad_rows, totals, follow_symlinks)

    return stored_rows("captions", annotation_file, settings, make)


def load_karpathy_captions(
    images_dir: str | Path,
    annotation_file: str | Path,
    split: str | Sequence[str] | None = None,
    *,
    on_bad_row: OnBadRow = "raise",
    follow_symlinks: bool = False,
) -> datasets.Dataset:
    """Load a part of Karpathy's split, from `dataset_coco.json` or `dataset_flickr8k.json`.

    Published captioning results on COCO, the paper's too, are trained on `("train", "restval")` and tested on
    `"test"`, 5000 images.

    Args:
        images_dir: the folder of the images; in COCO's file each image has a `filepath` below the folder, such as
            `val2014`.
        annotation_file: Karpathy's JSON.
        split: one or several of the splits that the file names; `None` takes "train", and "restval" if the file has
            it.
        on_bad_row: "raise" or "skip", as in `load_coco_captions`.
        follow_symlinks: whether images may be symbolic links to files outside of `images_dir`.

    Returns:
        A data set with the columns `image`, `image_id` (COCO's id if the file has it) and `captions`.

    Raises:
        ValueError: for a split that the file does not have, for a file that is not Karpathy's, and for bad rows.
        FileNotFoundError: if there is no such folder or annotation file, or if the only fault is that images are
            missing.
    """
    if split is None:
        wanted = {"train", "restval"}
    else:
        wanted = {split} if isinstance(split, str) else set(split)
    settings = {
        "images": os.path.abspath(images_dir),
        "bad": on_bad_row,
        "links": follow_symlinks,
        "split": split if split is None else sorted(wanted),
    }
    bad_rows = BadRows(annotation_file, on_bad_row)

    def make() -> Rows:
        entries = _KarpathyEntries(wanted, bad_rows)
        read_entries(annotation_file, "Karpathy's split", {"images": entries.add})
        entries.check(annotation_file, optional=set() if split else {"restval"})
        return _rows(images_dir, entries.names, entries.ids, entries.texts, bad_rows, entries.totals, follow_symlinks)

    return stored_rows("karpathy", annotation_file, settings, make)


class _Captions:
    """The annotations of a captions file. A text that cannot be used is `None`, and its fault goes to `bad_rows`."""

    def __init__(self, bad_rows: BadRows):
        self.bad_rows = bad_rows
        self.image_ids: list[Any] = []
        self.texts: list[str | None] = []
        self.ids: list[Any] = []
        self.other_fields: set[str] = set()

    def add(self, entry: Any) -> None:
        """Add one entry of `annotations`."""
        fields = entry if isinstance(entry, dict) else {}
        self.ids.append(fields.get("id"))
        self.image_ids.append(fields.get("image_id"))
        if "caption" not in fields:
            self.other_fields |= fields.keys()
        self.texts.append(_text(fields.get("caption"), "caption", shortened(entry), "annotations", self.bad_rows))

    def check(self, annotation_file: str | Path) -> None:
        """Raise `ValueError` if the file has no captions."""
        if any(text is not None for text in self.texts):
            return
        if "bbox" in self.other_fields:
            raise ValueError(
                f"{annotation_file} has no captions: its annotations have a `bbox`. Read it with load_coco_detection."
            )
        if not self.texts:
            raise ValueError(f"{annotation_file} has no captions: its list `annotations` is empty.")

    def name_of(self, index: int) -> str:
        return f"annotation {shortened(self.ids[index])}"


class _KarpathyEntries:
    """The images of some splits of Karpathy's file. Unusable images are left out, and added to `bad_rows`."""

    def __init__(self, wanted: set[str], bad_rows: BadRows):
        self.wanted, self.bad_rows = wanted, bad_rows
        self.names: list[str] = []
        self.ids: list[Any] = []
        self.texts: list[list[str]] = []
        self.splits: set[str] = set()  # all splits of the file
        self.num_sentences = self.count = 0
        self.fields: set[str] = set()

    @property
    def totals(self) -> dict[str, int]:
        return {"images": self.count, "sentences": self.num_sentences}

    def add(self, entry: Any) -> None:
        """Add one entry of `images`."""
        self.count += 1
        where = f"number {self.count}: {shortened(entry)}"
        try:
            if not isinstance(entry, dict):
                raise BadField("no fields")
            self.fields |= entry.keys()
            split = read_field(entry, "split", as_text)
            self.splits.add(split)
            if split not in self.wanted:
                return
            image_id = read_field(entry, "imgid" if is_missing(entry.get("cocoid")) else "cocoid", as_id)
            name = read_field(entry, "filename", as_text)
            folder = "" if is_missing(entry.get("filepath")) else read_field(entry, "filepath", as_text)
            sentences = entry.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                raise BadField("no sentence")
        except BadField as error:
            self.bad_rows.add("images", f"have {error}", where)
            return
        self.num_sentences += len(sentences)
        raw = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
        texts = [_text(text, "raw", f"{name}: {shortened(text)}", "sentences", self.bad_rows) for text in raw]
        self.ids.append(image_id)
        self.names.append(os.path.join(folder, name))
        self.texts.append([text for text in texts if text is not None])

    def check(self, annotation_file: str | Path, optional: set[str]) -> None:
        """Raise `ValueError` if the file is not Karpathy's, repeats ids, or lacks a wanted split not in `optional`."""
        if not self.count:
            raise ValueError(f"{annotation_file} has no images.")
        if not {"split", "sentences"} <= self.fields:
            raise ValueError(
                f"{annotation_file} is not Karpathy's split: its images have no `split` or no `sentences`. "
                "For COCO's own captions, call load_coco_captions."
            )
        unknown = sorted(self.wanted - self.splits - optional)
        if unknown:
            known = ", ".join(sorted(self.splits))
            raise ValueError(f"{annotation_file} has no image of the split {unknown}; it has: {known}.")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(
                f"{annotation_file} has {len(self.ids) - len(set(self.ids))} images with the id of another image."
            )


def _text(value: Any, key: str, where: str, noun: str, bad_rows: BadRows) -> str | None:
    """Return a caption in one line, as some of COCO's have a line break, or None for a fault, added to `bad_rows`."""
    try:
        return " ".join(as_text(value).split())
    except BadField as error:
        told = f"have no `{key}`" if is_missing(value) else f"have a `{key}` that {error}"
        bad_rows.add(noun, told, where)
        return None


def _rows(
    images_dir: str | Path,
    names: Sequence[str | None],
    ids: Sequence[Any],
    captions: Sequence[list[str]],
    bad_rows: BadRows,
    totals: dict[str, int],
    follow_symlinks: bool,
) -> Rows:
    """Make one row for each image that has a name, a readable file and a caption."""
    paths = find_images(images_dir, names, bad_rows, follow_symlinks=follow_symlinks)
    readable = read_headers(paths, bad_rows).readable
    notes = bad_rows.settle(totals)
    kept = np.flatnonzero(readable & np.array([bool(texts) for texts in captions], bool)).tolist()
    if not kept:
        raise ValueError(f"{bad_rows.file} has no caption that can be used.")
    times = Counter(paths[place] for place in kept)
    again = [place for place in kept if times[paths[place]] > 1]
    if again:
        notes.append(
            f"{bad_rows.file}: {len(again)} of {totals['images']} images share their file with another, so that an answer is "
            "compared with a part of the file's captions only (give a file one id, with all of its captions); the first: "
            f"{names[again[0]]!r} is {paths[again[0]]}."
        )
    ids = [ids[place] for place in kept]
    features = {
        "image": datasets.Image(),
        "image_id": id_feature(ids, bad_rows.file),
        "captions": datasets.List(datasets.Value("string")),
    }
    columns = {
        "image": image_column([paths[place] for place in kept]),
        "image_id": pa.array(ids),
        "captions": pa.array([captions[place] for place in kept], pa.list_(pa.string())),
    }
    gone = left_out(images_dir, names, readable)
    return Rows(columns, datasets.Features(features), notes, gone)
