"""Data sets in COCO's JSON form and in the Hub's, written and read back."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vision_rl.data.coco import category_ids, category_names, load_coco_detection


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]  # not in order


@pytest.fixture
def folder(tmp_path):
    """Writes images of 64 x 48 and the JSON; returns the two arguments of the loader."""

    def write(boxes, count=2, **changes):
        (tmp_path / "images").mkdir(exist_ok=True)
        for index in range(count):
            Image.new("RGB", (64, 48), (40 * index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
        content = {
            "images": [{"id": 100 + i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(count)],
            "annotations": [{"id": i + 1, "image_id": 100, "category_id": 18, **box} for i, box in enumerate(boxes)],
            "categories": CATEGORIES,
            **changes,
        }
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return tmp_path / "images", tmp_path / "instances.json"

    return write


def test_rows_are_images_with_their_boxes_and_images_without_a_box_stay(folder):
    boxes = [
        {"bbox": [1, 2, 30, 20.5], "category_id": 90, "area": 500.5, "iscrowd": 1},
        {"bbox": [5, 5, 10, 10], "image_id": 102},
        {"bbox": [0, 0, 64, 48], "category_id": 1},
    ]
    dataset = load_coco_detection(*folder(boxes, count=3))
    assert dataset.column_names == ["image", "image_id", "objects"] and dataset["image_id"][:] == [100, 101, 102]
    assert dataset["objects"][:] == [
        {
            "bbox": [[1, 2, 30, 20.5], [0, 0, 64, 48]],
            "category": [2, 0],
            "iscrowd": [1, 0],
            "area": [500.5, 64 * 48],  # the box's where none is given
        },
        {"bbox": [], "category": [], "iscrowd": [], "area": []},
        {"bbox": [[5, 5, 10, 10]], "category": [1], "iscrowd": [0], "area": [100]},
    ]
    assert dataset[2]["image"].size == (64, 48) and dataset[2]["image"].getpixel((0, 0)) == (80, 0, 0)


def test_images_are_opened_when_a_row_is_read_and_not_before(folder):
    images, annotations = folder([])
    (images / "1.png").write_text("no image")
    dataset = load_coco_detection(images, annotations)
    raw = dataset.cast_column("image", datasets.Image(decode=False))
    assert raw[1]["image"] == {"path": str(images / "1.png"), "bytes": None}


def test_categories_are_indices_in_the_order_of_cocos_ids_and_both_are_known(folder):
    images, annotations = folder([{"bbox": [0, 0, 5, 5], "category_id": 90}])
    dataset = load_coco_detection(images, annotations)
    assert category_names(dataset) == ["person", "dog", "toothbrush"]
    assert category_ids(annotations) == [1, 18, 90]
    assert category_ids(annotations)[dataset[0]["objects"]["category"][0]] == 90


def test_a_file_without_annotations_is_a_data_set_of_empty_images(folder):
    dataset = load_coco_detection(*folder([]))
    assert len(dataset) == 2 and dataset[0]["objects"]["bbox"] == []


def test_image_ids_may_be_strings(folder):
    images = [{"id": "a", "file_name": "0.png"}, {"id": "b", "file_name": "1.png"}]
    dataset = load_coco_detection(*folder([{"bbox": [0, 0, 5, 5], "image_id": "b"}], images=images))
    assert dataset["image_id"][:] == ["a", "b"] and dataset[1]["objects"]["category"] == [1]


def test_the_size_is_read_from_the_image_where_the_json_has_none(folder):
    images = [{"id": 100, "file_name": "0.png"}]
    dataset = load_coco_detection(*folder([{"bbox": [60, 40, 30, 30]}], images=images))
    assert dataset[0]["objects"]["bbox"] == [[60, 40, 4, 8]]


# Boxes that are not as they should be


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("vision_rl.data")]


def test_boxes_without_area_are_left_out_and_counted(folder, caplog):
    nan = float("nan")
    bad = [[5, 5, 0, 10], [5, 5, 10, -1], [nan, 5, 10, 10], [64, 5, 10, 10], [-20, 0, 20, 10], [5, 5, 10], None]
    dataset = load_coco_detection(*folder([{"bbox": [1, 1, 9, 9]}, *({"bbox": box} for box in bad)]))
    assert dataset[0]["objects"]["bbox"] == [[1, 1, 9, 9]]
    (message,) = warnings_of(caplog)
    assert "7 of 8 boxes" in message and "left out; the first: annotation 2 with bbox [5, 5, 0, 10]" in message


def test_boxes_partly_outside_are_clipped_and_counted(folder, caplog):
    boxes = [[-4, -2, 10, 10], [60, 40, 10, 10], [1, 1, 9, 9]]
    dataset = load_coco_detection(*folder([{"bbox": box, "area": 50} for box in boxes]))
    assert dataset[0]["objects"]["bbox"] == [[0, 0, 6, 8], [60, 40, 4, 8], [1, 1, 9, 9]]
    assert dataset[0]["objects"]["area"] == [48, 32, 50]  # no object is larger than what is left of its box
    (message,) = warnings_of(caplog)
    assert "2 of 3 boxes" in message and "clipped to it; the first: annotation 1 with bbox [-4, -2, 10, 10]" in message


def test_boxes_that_end_a_rounding_error_outside_are_clipped_without_a_word(folder, caplog):
    dataset = load_coco_detection(*folder([{"bbox": [54.01, 38, 10, 10]}, {"bbox": [0.3, 0.3, 63.7, 47.7]}]))
    assert not warnings_of(caplog)
    for x, y, w, h in dataset[0]["objects"]["bbox"]:
        assert x + w <= 64 + 1e-9 and y + h <= 48 + 1e-9 and w > 9.9


def test_clean_data_is_read_without_a_warning(folder, caplog):
    with caplog.at_level(logging.DEBUG):
        load_coco_detection(*folder([{"bbox": [0, 0, 64, 48]}]))
    assert not warnings_of(caplog)


def test_corners_given_for_width_and_height_are_suspected(folder):
    corners = [[30, 20, 60, 40], [20, 20, 50, 45], [1, 1, 9, 9]]
    with pytest.raises(
        ValueError, match="2 of 3 boxes .* leave their image, and would not if they were x0, y0, x1, y1"
    ):
        load_coco_detection(*folder([{"bbox": box} for box in corners]))


@pytest.mark.parametrize(
    ("boxes", "changes", "message"),
    [
        ([{"image_id": 7}, {}], {}, "1 of 2 annotations .* image that is not in .* annotation 1 with image_id 7"),
        ([{}, {"category_id": 3}], {}, "1 of 2 annotations .* category that is .* annotation 2 with category_id 3"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories called 'a'"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "1 categories whose id is taken"),
        ([], {"images": [{"id": 1, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}]}, "1 images whose id is"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, boxes, changes, message):
    with pytest.raises(ValueError, match=message):
        load_coco_detection(*folder([{"bbox": [1, 1, 9, 9], **box} for box in boxes], **changes))


def test_missing_images_are_counted_and_the_first_is_named(folder):
    images, annotations = folder([], count=3)
    (images / "1.png").unlink()
    (images / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images .* the first: .*1\.png"):
        load_coco_detection(images, annotations)


def test_a_missing_file_and_another_json_are_refused(folder, tmp_path):
    images, annotations = folder([])
    with pytest.raises(FileNotFoundError, match="There is no annotation file"):
        load_coco_detection(images, tmp_path / "no.json")
    for content, absent in (
        ([], "'images', 'annotations', 'categories'"),
        ({"images": [], "annotations": []}, "'categories'"),
    ):
        annotations.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"no COCO file of boxes: it has no {absent} at"):
            load_coco_detection(images, annotations)


# Rows in the Hub's style


def reloaded(dataset, tmp_path):
    dataset.to_parquet(tmp_path / "rows.parquet")
    files = str(tmp_path / "rows.parquet")
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))


def test_a_folder_survives_parquet_with_its_names(folder, tmp_path):
    dataset = load_coco_detection(*folder([{"bbox": [1, 1, 9, 9]}]))
    again = reloaded(dataset, tmp_path)
    assert again.features == dataset.features and category_names(again) == category_names(dataset)
    assert again[1]["image"].getpixel((0, 0)) == (40, 0, 0)
    assert again["objects"][:] == dataset["objects"][:]


CLASSES = datasets.ClassLabel(names=["cat", "dog"])
BBOX = datasets.List(datasets.Value("float32"), length=4)


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": datasets.List(BBOX), "category": datasets.List(CLASSES)},
        {"bbox": datasets.List(BBOX), "label": datasets.List(CLASSES)},
        {"bbox": datasets.List(BBOX), "labels": datasets.List(CLASSES)},
        datasets.List({"bbox": BBOX, "category": CLASSES}),
        datasets.Sequence({"bbox_id": datasets.Value("int64"), "category": CLASSES, "bbox": BBOX}),
    ],
)
def test_names_are_found_in_every_layout_that_the_hub_has(objects, tmp_path):
    fields = objects.feature if isinstance(objects, datasets.List) else objects
    one = {"bbox": [0.0, 0.0, 1.0, 1.0], "bbox_id": 5}
    box = {name: one.get(name, 1) for name in fields}
    row = [box] if isinstance(objects, datasets.List) else {name: [value] for name, value in box.items()}
    dataset = datasets.Dataset.from_dict({"objects": [row]}, features=datasets.Features({"objects": objects}))
    assert category_names(reloaded(dataset, tmp_path)) == ["cat", "dog"]
    assert category_names(dataset.rename_column("objects", "things"), "things") == ["cat", "dog"]
    assert category_names(dataset.to_iterable_dataset()) == ["cat", "dog"]


def test_bare_numbers_have_no_names():
    numbers = datasets.Dataset.from_dict({"objects": [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": [3]}]})
    assert category_names(numbers) is None
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"objects": {"category": [1]}}]))
    assert stream.features is None and category_names(stream) is None


def test_a_column_that_is_not_there_or_has_no_boxes_is_refused():
    dataset = datasets.Dataset.from_dict({"image_id": [1]})
    with pytest.raises(ValueError, match="no column 'objects'; it has: 'image_id'"):
        category_names(dataset)
    with pytest.raises(ValueError, match="column 'image_id' has no fields"):
        category_names(dataset, "image_id")


# Real data


@pytest.mark.parametrize(
    ("name", "images", "rows", "boxes", "crowds", "classes"),
    [("bccd", "JPEGImages", 292, 3891, 0, 3), ("coco_mini_680", "images", 483, 4084, 31, 80)],
)
def test_real_folders_are_read_whole(name, images, rows, boxes, crowds, classes, caplog):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the data set {name} is not on this machine")
    dataset = load_coco_detection(SHARED / name / images, SHARED / name / "instances.json")
    assert len(dataset) == rows and not warnings_of(caplog)
    objects = dataset["objects"][:]
    assert sum(len(row["bbox"]) for row in objects) == boxes and sum(sum(row["iscrowd"]) for row in objects) == crowds
    assert len(category_names(dataset)) == len(category_ids(SHARED / name / "instances.json")) == classes
    width, height = dataset[0]["image"].size
    corners = np.array(objects[0]["bbox"])[:, :2] + np.array(objects[0]["bbox"])[:, 2:]
    assert (corners <= [width + 0.1, height + 0.1]).all()
