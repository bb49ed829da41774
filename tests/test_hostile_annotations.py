"""Annotation files that are broken or hostile: every loader says what is wrong, and stays inside of its folder."""

import json
import os
import random

import datasets
import pytest
from fuzzing import damaged, mutated
from PIL import Image

from vision_rl.data.captions import load_coco_captions, load_karpathy_captions
from vision_rl.data.coco import category_ids, load_coco_detection
from vision_rl.data.panoptic import load_coco_panoptic, panoptic_categories
from vision_rl.tasks.panoptic import read_coco_panoptic


NUM_MUTATED = int(os.environ.get("VISION_RL_FUZZ", "40"))  # changed files for each loader
IMAGES = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(3)]
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]
BOX = {"bbox": [1, 1, 5, 5], "category_id": 7, "iscrowd": 0, "area": 20}
SEGMENTS = [{"id": 1, "category_id": 1, "iscrowd": 0}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    for index in range(3):
        Image.new("RGB", (8, 8), (1, 0, 0)).save(path / f"{index}.png")
    return path


def annotated(**fields) -> dict:
    annotations = [{"id": i, "image_id": i, **fields} for i in range(3)]
    return {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}


KARPATHY = {
    "images": [
        {"imgid": i, "cocoid": i, "filename": f"{i}.png", "split": "train", "sentences": [{"raw": "a cat"}]}
        for i in range(3)
    ]
}
LOADERS = {
    "boxes": (annotated(**BOX), lambda folder, file, policy: load_coco_detection(folder, file, on_bad_row=policy)),
    "captions": (
        annotated(caption="a"),
        lambda folder, file, policy: load_coco_captions(folder, file, on_bad_row=policy),
    ),
    "karpathy": (KARPATHY, lambda folder, file, policy: load_karpathy_captions(folder, file, on_bad_row=policy)),
    "panoptic": (
        annotated(file_name="0.png", segments_info=SEGMENTS),
        lambda folder, file, policy: load_coco_panoptic(folder, folder, file, on_bad_row=policy),
    ),
    "category_ids": (annotated(**BOX), lambda folder, file, policy: category_ids(file)),
    "panoptic_categories": (annotated(), lambda folder, file, policy: panoptic_categories(file)),
    "predictions": (
        annotated(file_name="0.png", segments_info=SEGMENTS),
        lambda folder, file, policy: read_coco_panoptic(folder, file),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_changed_file_is_read_or_refused_with_its_name_and_in_a_sentence(folder, name):
    content, load = LOADERS[name]
    rng = random.Random(name)
    file = folder / f"{name}.json"
    for _ in range(NUM_MUTATED):
        changed = content
        for _ in range(rng.randrange(1, 4)):
            changed = mutated(changed, rng)
        text = json.dumps(changed)
        file.write_bytes(damaged(text.encode("utf-8", "surrogatepass"), rng) if rng.random() < 0.4 else text.encode())
        for policy in ("raise", "skip"):
            try:
                rows = load(folder, file, policy)
                if isinstance(rows, datasets.Dataset):
                    rows[:]
            except (ValueError, OSError) as error:
                assert file.name in str(error) or "images_dir" in str(error), (text, error)
                assert not isinstance(error, UnicodeError), (text, error)


@pytest.mark.parametrize("name", ["boxes", "captions", "panoptic", "karpathy"])
@pytest.mark.parametrize(
    "path", ["../secret.png", "/{}/secret.png", "..\\secret.png", "link.png", "%2E%2E/secret.png"]
)
def test_no_loader_reads_a_picture_outside_of_its_folder(tmp_path, name, path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "images" / "link.png")
    content = json.loads(json.dumps(LOADERS[name][0]))
    for image in content["images"]:
        image["file_name"] = image["filename"] = path.format(str(tmp_path)[1:])
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="leads out of its folder|symbolic links out of their folder"):
        LOADERS[name][1](tmp_path / "images", tmp_path / "a.json", "raise")
    if name == "panoptic":
        for annotation in content["annotations"]:
            annotation["file_name"] = annotation.get("file_name") and path.format(str(tmp_path)[1:])
        content["images"] = IMAGES
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="maps (have a file name that leads|are symbolic links) out of"):
            load_coco_panoptic(tmp_path / "images", tmp_path / "images", tmp_path / "a.json")
