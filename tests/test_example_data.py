"""What the example scripts make of folders and options, and what they say where these do not suffice."""

import json

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Twenty images, each with a box and a caption, in folders of two."""
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


def test_a_tenth_of_a_coco_folder_is_kept_for_evaluation_where_no_other_is_given(example, folder):
    data = example("detection_data")
    args = data.DataArguments(images_dir=f"{folder}/images", annotation_file=f"{folder}/boxes.json")
    train, evaluated, names = data.detection_data(args)
    assert (len(train), len(evaluated), names) == (18, 2, ["x"])
    assert not {*train["image_id"]} & {*evaluated["image_id"]}
    args.eval_annotation_file = args.annotation_file
    assert [len(rows) for rows in data.detection_data(args)[:2]] == [20, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotation_file": "a.json"}, "needs --images_dir and --annotation_file"),
        ({"images_dir": "images"}, "needs --images_dir and --annotation_file"),
        ({"eval_annotation_file": "a.json"}, "needs --images_dir and --annotation_file"),
        (
            {"images_dir": "{0}/images", "annotation_file": "{0}/boxes.json", "eval_images_dir": "x"},
            "--eval_images_dir needs",
        ),
    ],
)
def test_half_of_a_coco_folder_is_refused(example, folder, options, message):
    data = example("detection_data")
    with pytest.raises(ValueError, match=message):
        data.detection_data(data.DataArguments(**{key: value.format(folder) for key, value in options.items()}))


def test_bad_rows_may_be_skipped_from_the_command_line(example, folder):
    (folder / "images" / "part1" / "19.png").unlink()
    for module, load, options in (
        ("detection_data", "detection_data", {"annotation_file": f"{folder}/boxes.json"}),
        ("captioning_data", "captioning_data", {"annotation_file": f"{folder}/captions.json"}),
    ):
        data = example(module)
        args = data.DataArguments(images_dir=f"{folder}/images", **options)
        with pytest.raises(FileNotFoundError, match="1 of 20 images are not there"):
            getattr(data, load)(args)
        args.on_bad_row = "skip"
        assert sum(len(rows) for rows in getattr(data, load)(args) if hasattr(rows, "column_names")) == 19


def test_photos_for_colorization_are_read_from_nested_folders(example, folder):
    data = example("dense_data")
    Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / "images" / "part0" / "grey.png")
    splits = data.colorization_data(data.DataArguments(images_dir=f"{folder}/images"))
    assert [len(rows) for rows in splits] == [16, 2, 2]
