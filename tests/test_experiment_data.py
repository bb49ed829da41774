"""How the experiments read folders and options, and what they say if these do not suffice."""

import json

import pytest
from PIL import Image

from vision_rl.tasks import captioning, detection


@pytest.fixture
def folder(tmp_path):
    """Twenty images, each with a box and a caption, in folders of two images."""
    images, boxes, captions = [], [], []
    for index in range(20):
        name = f"part{index // 10}/{index}.png"
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (200, index, 0)).save(tmp_path / "images" / name)
        images.append({"id": index, "file_name": name})
        boxes.append({"id": index, "image_id": index, "category_id": 3, "bbox": [1, 1, 9, 9]})
        captions.append({"id": index, "image_id": index, "caption": f"photo {index}"})
    categories = [{"id": 3, "name": "x"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


@pytest.mark.parametrize("task", [detection, captioning])
def test_a_folder_of_images_without_its_annotations_is_refused_and_not_replaced_by_digits(task, folder):
    with pytest.raises(ValueError, match="annotation_file"):
        task.load_data(task.Options(images_dir=f"{folder}/images", scenes=8), "train")


def test_captions_are_split_and_bad_rows_skipped_where_one_says_so(experiment, folder):
    (folder / "images" / "part1" / "19.png").unlink()
    options = captioning.Options(images_dir=f"{folder}/images", annotation_file=f"{folder}/captions.json")
    with pytest.raises(FileNotFoundError, match="1 of 20 images are not there"):
        experiment("captioner").splits(options)
    options.on_bad_annotation = "skip"
    splits = experiment("captioner").splits(options)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 13, "validation": 3, "test": 3}
    ids = [image for rows in splits.values() for image in rows["image_id"]]
    assert len(set(ids)) == len(ids) == 19


def test_captions_without_a_folder_are_asked_for(experiment):
    with pytest.raises(ValueError, match="Say what to learn from: --images_dir"):
        experiment("captioner").splits(captioning.Options())


def test_photos_for_colorization_are_read_from_nested_folders(experiment, folder):
    data = experiment("dense_data")
    Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / "images" / "part0" / "grey.png")
    splits = data.colorization_data(data.DataArguments(images_dir=f"{folder}/images"))
    assert [len(rows) for rows in splits] == [16, 2, 2]
