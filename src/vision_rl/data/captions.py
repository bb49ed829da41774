"""Captioning data: folders in COCO's JSON form, and Karpathy's split of COCO and Flickr."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from vision_rl.data.coco import distinct_image_ids, existing_paths, image_id_feature, read_json, refuse_unknown_ids


def load_coco_captions(images_dir: str | Path, annotation_file: str | Path) -> datasets.Dataset:
    """The rows of a COCO captions file, one an image that has a caption, in the order of the JSON.

    Args:
        images_dir: the folder that the JSON's `file_name`s are in.
        annotation_file: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).

    Returns:
        A data set with the columns `image` (opened when a row is read), `image_id` and `captions`, a list of strings.

    Raises:
        ValueError: an annotation of an unknown image or without a caption, or two images of one id.
        FileNotFoundError: with the number of images that are not there, and the first.
    """
    content = read_json(annotation_file, ("images", "annotations"), "captions")
    images, annotations = content["images"], content["annotations"]
    ids = distinct_image_ids(images, annotation_file)
    refuse_unknown_ids("image", "image_id", annotations, set(ids), annotation_file)
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in annotations:
        captions[annotation["image_id"]].append(_text(annotation.get("caption"), annotation, annotation_file))
    captioned = [image for image in images if image["id"] in captions]
    paths = existing_paths(images_dir, [image["file_name"] for image in captioned], annotation_file)
    return _dataset(paths, [image["id"] for image in captioned], [captions[image["id"]] for image in captioned])


def load_karpathy_captions(
    images_dir: str | Path, annotation_file: str | Path, split: str | Sequence[str] | None = None
) -> datasets.Dataset:
    """The rows of a part of Karpathy's split, `dataset_coco.json` or `dataset_flickr8k.json`.

    Published captioning results on COCO, the paper's too, are trained on `("train", "restval")` and tested on `"test"`,
    5000 images.

    Args:
        images_dir: the folder of the images; in COCO's file each has a `filepath` below it, such as `val2014`.
        annotation_file: Karpathy's JSON.
        split: one or several of those that the file names; `None`: "train", and "restval" where the file has it.

    Returns:
        A data set with the columns `image`, `image_id` (COCO's where the file has it) and `captions`.

    Raises:
        ValueError: for a split that the file does not have, or an image without a sentence.
        FileNotFoundError: with the number of images that are not there, and the first.
    """
    images = read_json(annotation_file, ("images",), "Karpathy's split")["images"]
    if any("split" not in image or "sentences" not in image for image in images):
        raise ValueError(
            f"{annotation_file} is not Karpathy's split: its images have no `split` or no `sentences`. load_coco_captions "
            "reads COCO's own captions."
        )
    known = sorted({image["split"] for image in images})
    wanted = (
        {"train", *({"restval"} & set(known))} if split is None else {split} if isinstance(split, str) else {*split}
    )
    unknown = sorted(wanted - set(known))
    if unknown:
        raise ValueError(f"{annotation_file} has no image of the split {unknown}; it has: {', '.join(known)}.")
    chosen = [image for image in images if image["split"] in wanted]
    names = [str(Path(image.get("filepath", ""), image["filename"])) for image in chosen]
    captions = [
        [_text(sentence.get("raw"), sentence, annotation_file) for sentence in image["sentences"]] for image in chosen
    ]
    for image, texts in zip(chosen, captions, strict=True):
        if not texts:
            raise ValueError(f"{annotation_file} has no sentence for {image['filename']}.")
    ids = [image.get("cocoid", image["imgid"]) for image in chosen]
    return _dataset(existing_paths(images_dir, names, annotation_file), ids, captions)


def _text(caption: Any, annotation: dict, annotation_file: str | Path) -> str:
    """The caption in one line: some of COCO's hold a line break."""
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"{annotation_file} has an annotation without a caption: {annotation}.")
    return " ".join(caption.split())


def _dataset(paths: list[str], ids: list, captions: list[list[str]]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": image_id_feature(ids),
            "captions": datasets.List(datasets.Value("string")),
        }
    )
    return datasets.Dataset.from_dict({"image": paths, "image_id": ids, "captions": captions}, features=features)
