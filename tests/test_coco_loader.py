"""Data sets in COCO's JSON form and in the Hub's forms are written and read back."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vision_rl.data.coco import category_ids, category_names, load_coco_detection
from vision_rl.tasks.detection import coco_results


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]  # not in order


@pytest.fixture
def folder(tmp_path):
    """A function that writes images of 64 x 48 and the JSON, and returns the two arguments of the loader."""

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
    assert dataset.column_names == ["image", "image_id", "objects", "frame"] and dataset["image_id"][:] == [
        100,
        101,
        102,
    ]
    assert dataset["objects"][:] == [
        {
            "bbox": [[1, 2, 30, 20.5], [0, 0, 64, 48]],
            "category": [2, 0],
            "iscrowd": [1, 0],
            "area": [500.5, 64 * 48],  # the box's area where none is given
        },
        {"bbox": [], "category": [], "iscrowd": [], "area": []},
        {"bbox": [[5, 5, 10, 10]], "category": [1], "iscrowd": [0], "area": [100]},
    ]
    assert dataset[2]["image"].size == (64, 48) and dataset[2]["image"].getpixel((0, 0)) == (80, 0, 0)


def test_images_are_decoded_when_a_row_is_read_and_their_headers_before(folder):
    images, annotations = folder([])
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])  # the header is still whole
    dataset = load_coco_detection(images, annotations)
    raw = dataset.cast_column("image", datasets.Image(decode=False))
    assert raw[1]["image"] == {"path": str(images / "1.png"), "bytes": None}
    (images / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be read; the first: .*1\.png \(cannot identify"):
        load_coco_detection(images, annotations)


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


def test_boxes_that_are_none_stop_the_load_or_are_left_out_and_either_way_counted(folder, caplog):
    nan = float("nan")
    bad = [[5, 5, 0, 10], [5, 5, 10, -1], [0, 0, 0, 0], [nan, 5, 10, 10], [5, 5, float("inf"), 9], [5, 5, 10], None]
    bad += [
        [64, 5, 10, 10],
        [-20, 0, 20, 10],
        ["", "", "", ""],
        {"x": 1},
        "1,2,3,4",
        [True, 1, 5, 5],
        [1, 1, 1e400, 5],
    ]
    paths = folder([{"bbox": [1, 1, 9, 9]}, *({"bbox": box} for box in bad), {"segmentation": {"counts": "x"}}])
    with pytest.raises(ValueError) as error:
        load_coco_detection(*paths)
    dataset = load_coco_detection(*paths, on_bad_row="skip")
    assert dataset[0]["objects"]["bbox"] == [[1, 1, 9, 9]] and len(dataset) == 2
    for sentence in (
        "3 of 16 annotations have a `bbox` that has no width or height; the first: annotation 2 with bbox [5, 5, 0, 10]; "
        "annotation 3 with bbox [5, 5, 10, -1]; annotation 4 with bbox [0, 0, 0, 0]",
        "3 of 16 annotations have a `bbox` that is not finite; the first: annotation 5 with bbox [nan, 5, 10, 10]",
        "3 of 16 annotations have a `bbox` that is not four numbers; the first: annotation 7 with bbox [5, 5, 10]",
        "1 of 16 annotations have no `bbox`; the first: annotation 8",
        "2 of 16 annotations have a `bbox` outside of their image; the first: annotation 9 with bbox [64, 5, 10, 10]",
        "2 of 16 annotations have a `bbox` that is not a number; the first: annotation 11 with bbox ['', '', '', '']",
        "1 of 16 annotations have a `segmentation` and no `bbox` (pycocotools.mask.toBbox makes one)",
    ):
        assert sentence in str(error.value) and sentence in caplog.text
    assert 'leave them out with on_bad_row="skip"' in str(error.value) and str(paths[1]) in str(error.value)


def test_boxes_partly_outside_are_clipped_and_counted(folder, caplog):
    boxes = [[-4, -2, 10, 10], [60, 40, 10, 10], [1, 1, 9, 9]]
    dataset = load_coco_detection(*folder([{"bbox": box, "area": 50} for box in boxes]))
    assert dataset[0]["objects"]["bbox"] == [[0, 0, 6, 8], [60, 40, 4, 8], [1, 1, 9, 9]]
    assert dataset[0]["objects"]["area"] == [48, 32, 50]  # at most the area of the clipped box
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
        ValueError, match="2 of 3 boxes .* leave their image, but would not if they were x0, y0, x1, y1"
    ):
        load_coco_detection(*folder([{"bbox": box} for box in corners]))


@pytest.mark.parametrize(
    ("boxes", "changes", "message"),
    [
        ([{"image_id": 7}, {}], {}, "1 of 2 annotations .* image that is not in .* annotation 1 with image_id 7"),
        ([{}, {"category_id": 3}], {}, "1 of 2 annotations .* category that is .* annotation 2 with category_id 3"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories called 'a'"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "1 categories with the id of another"),
        (
            [],
            {"images": [{"id": 1, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}]},
            "1 images with the id of another",
        ),
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
        ({}, "'images', 'annotations', 'categories'"),
        ({"images": [], "annotations": []}, "'categories'"),
    ):
        annotations.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"not a file of COCO's boxes: it has no {absent} at"):
            load_coco_detection(images, annotations)


# What tools write


IMAGE = {"id": 100, "file_name": "0.png"}


def box_of(folder, box=None, **changes):
    """The row of a file with one annotation, after changes to the annotation and to the file."""
    box = {"bbox": [1, 1, 9, 9], **(box or {})}
    return load_coco_detection(*folder([box], **changes))[0]


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (True, 1),
        (False, 0),
        ("true", 1),
        ("False", 0),
        ("0", 0),
        ("1", 1),
        (1.0, 1),
        (None, 0),
        (float("nan"), 0),
        ("", 0),
    ],
)
def test_a_crowd_flag_is_a_number_a_word_or_nothing(folder, value, flag):
    assert box_of(folder, {"iscrowd": value})["objects"]["iscrowd"] == [flag]


@pytest.mark.parametrize(("value", "area"), [(None, 81), (float("nan"), 81), (0, 81), ("40.5", 40.5), (7, 7)])
def test_an_area_that_is_not_there_is_the_boxs(folder, value, area):
    assert box_of(folder, {"area": value})["objects"]["area"] == [area]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            {"iscrowd": "maybe"},
            "have an `iscrowd` that is neither 0 nor 1; the first: annotation 1 with iscrowd 'maybe'",
        ),
        ({"iscrowd": 2}, "that is neither 0 nor 1"),
        ({"iscrowd": [0]}, "that is neither 0 nor 1"),
        ({"area": "large"}, "have an `area` that is not a number; the first: annotation 1 with area 'large'"),
        ({"area": -5}, "have an `area` that is negative"),
        ({"area": float("inf")}, "have an `area` that is not finite"),
        ({"image_id": "100"}, r"that is not in the file, whose ids are numbers, not texts"),
        ({"image_id": None}, "an image that is not in the file; the first: annotation 1 with image_id None"),
        ({"image_id": [100]}, "an image that is not in the file"),
        ({"category_id": "dog"}, "a category that is not in the file; the first: annotation 1 with category_id 'dog'"),
    ],
)
def test_a_field_that_cannot_be_right_is_named(folder, box, message):
    with pytest.raises(ValueError, match=message):
        box_of(folder, box)


@pytest.mark.parametrize(
    ("images", "ids", "feature"),
    [
        ([{**IMAGE, "id": 7.0}], [7], "int64"),
        ([{**IMAGE, "id": 1.5}], [1.5], "float64"),
        ([{**IMAGE, "id": "7"}], ["7"], "string"),
        ([{**IMAGE, "id": 0}], [0], "int64"),
    ],
)
def test_ids_stay_what_they_are(folder, images, ids, feature):
    dataset = load_coco_detection(*folder([{"bbox": [1, 1, 9, 9], "image_id": ids[0]}], images=images))
    assert dataset["image_id"][:] == ids and dataset.features["image_id"].dtype == feature
    assert len(dataset[0]["objects"]["bbox"]) == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "has no images"),
        ([{**IMAGE, "id": 7}, {**IMAGE, "id": "a", "file_name": "1.png"}], "both texts and numbers as image ids"),
        ([{"file_name": "0.png"}], "1 of 1 images have no `id`; the first: number 1: {'file_name': '0.png'}"),
        ([{**IMAGE, "id": True}], "have an `id` that is not an id"),
        ([{**IMAGE, "id": 2**70}], "too large for an id"),
        ([{"id": 100}], "1 of 1 images have no `file_name`"),
        ([{"id": 100, "file_name": 5}], "have a `file_name` that is not a text"),
        ([{"id": 100, "file_name": "\ud800.png"}], "have a `file_name` that is not a valid text"),
        ([None], "1 of 1 images are not objects with fields"),
        ([{"id": 100, "file_name": "../instances.json"}], "leads out of its folder"),
    ],
)
def test_images_that_cannot_be_used_are_named(folder, images, message):
    with pytest.raises(ValueError, match=message):
        load_coco_detection(*folder([], images=images))


def test_a_photo_of_two_ids_is_an_error_or_left_out_since_each_row_would_lack_the_boxes_of_the_other(folder, caplog):
    images = [{"id": 100 + place, "file_name": name} for place, name in enumerate(("0.png", "./0.png", "1.png"))]
    paths = folder([{"bbox": [1, 1, 20, 20]}, {"bbox": [30, 30, 10, 10], "image_id": 101}], images=images)
    with pytest.raises(ValueError, match=r"2 of 3 images share their file with another, .*'\./0\.png' is .*0\.png"):
        load_coco_detection(*paths)
    assert load_coco_detection(*paths, on_bad_row="skip")["image_id"][:] == [102]
    assert "2 of 3 images share their file with another" in caplog.text


def test_lvis_names_its_files_by_their_address(folder):
    images = [{"id": 100, "coco_url": "http://images.cocodataset.org/train2017/0.png"}]
    assert box_of(folder, images=images)["objects"]["bbox"] == [[1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 18}], "the category {'id': 18} has no `name`"),
        ([{"id": 18, "name": 3}], "has a `name` that is not a text"),
        ([{"id": 18, "name": ""}], "has a `name` that is not a text"),
        ([{"name": "dog"}], "has no `id`"),
        (["dog"], "the category 'dog' has no fields"),
        ([{"id": 18, "name": "dog"}, {"id": "19", "name": "cat"}], "both texts and numbers as category ids"),
    ],
)
def test_categories_that_cannot_be_used_are_named(folder, categories, message):
    paths = folder([{"bbox": [1, 1, 9, 9]}], categories=categories)
    for read in (lambda: load_coco_detection(*paths), lambda: category_ids(paths[1])):
        with pytest.raises(ValueError, match=message):
            read()


def test_category_ids_may_be_texts_and_may_start_anywhere(folder):
    for ids in (["b", "a"], [0, 7], [-3, 5]):
        categories = [{"id": i, "name": f"class {i}"} for i in ids]
        paths = folder([{"bbox": [1, 1, 9, 9], "category_id": ids[0]}], categories=categories)
        dataset = load_coco_detection(*paths)
        assert category_ids(paths[1]) == sorted(ids)
        assert category_names(dataset)[dataset[0]["objects"]["category"][0]] == f"class {ids[0]}"


def test_an_annotation_that_is_there_twice_is_told_and_one_id_for_several_is_none_of_our_business(folder):
    same = {"id": 5, "bbox": [1, 1, 9, 9]}
    with pytest.raises(ValueError, match="1 of 2 annotations occur twice; the first: annotation 5"):
        load_coco_detection(*folder([same, same]))
    assert len(load_coco_detection(*folder([same, same]), on_bad_row="skip")[0]["objects"]["bbox"]) == 1
    others = [{"id": 0, "bbox": [1, 1, 9, 9]}, {"id": 0, "bbox": [2, 2, 9, 9]}, {"bbox": [1, 1, 9, 9], "id": None}]
    assert len(load_coco_detection(*folder(others))[0]["objects"]["bbox"]) == 3


def test_files_of_another_kind_are_sent_to_their_loader(folder):
    for field, loader in (("caption", "load_coco_captions"), ("segments_info", "load_coco_panoptic")):
        with pytest.raises(ValueError, match=f"has no boxes: its annotations have a `{field}`. Read it with {loader}"):
            load_coco_detection(*folder([{field: "a dog"}] * 3))


def test_shares_of_the_image_are_not_taken_for_pixels(folder):
    with pytest.raises(
        ValueError, match="all 2 boxes lie within the first pixel .* are they shares of width and height"
    ):
        load_coco_detection(*folder([{"bbox": [0.1, 0.2, 0.5, 0.3]}, {"bbox": [0, 0, 1, 1]}]))


def test_skipping_leaves_out_no_more_than_what_is_bad(folder, caplog):
    boxes = [
        {"bbox": [1, 1, 9, 9]},
        {"bbox": [2, 2, 9, 9], "image_id": 101},
        {"bbox": [3, 3, 9, 9], "image_id": 102},
        {},
    ]
    images, annotations = folder(boxes, count=3)
    (images / "1.png").unlink()
    dataset = load_coco_detection(images, annotations, on_bad_row="skip")
    assert dataset["image_id"][:] == [100, 102]
    assert [row["bbox"] for row in dataset["objects"]] == [[[1, 1, 9, 9]], [[3, 3, 9, 9]]]
    assert (
        "1 of 3 images are not there; the first:" in caplog.text and "1 of 4 annotations have no `bbox`" in caplog.text
    )
    with pytest.raises(ValueError, match=r"\n- 1 of 4 annotations have no `bbox`.*\n- 1 of 3 images are not there"):
        load_coco_detection(images, annotations)
    with pytest.raises(ValueError, match='on_bad_row must be "raise" or "skip"'):
        load_coco_detection(images, annotations, on_bad_row="ignore")


# Sizes in the JSON and in the file, and EXIF between them


def turned_photo(images, orientation=6):
    """A photo that is stored as 100 x 40; orientation 6 shows it as 40 x 100."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 40)).save(images / "0.png", exif=exif)


@pytest.mark.parametrize(
    ("size", "bbox", "shown", "measured"),
    [
        ({}, [5, 60, 30, 30], [5, 60, 30, 30], ([40, 100], 1)),
        ({"width": 100, "height": 40}, [5, 60, 30, 30], [5, 60, 30, 30], ([40, 100], 1)),  # as Label Studio exports it
        ({"width": 100, "height": 40}, [60, 5, 30, 20], [15, 60, 20, 30], ([100, 40], 6)),
        ({"width": "100", "height": "40"}, [60, 5, 30, 20], [15, 60, 20, 30], ([100, 40], 6)),
        ({"width": 200, "height": 80}, [120, 10, 60, 40], [15, 60, 20, 30], ([200, 80], 6)),
    ],
)
def test_boxes_are_where_the_shown_photo_has_them_and_results_where_the_file_does(folder, size, bbox, shown, measured):
    images, annotations = folder([{"bbox": bbox}], images=[{**IMAGE, **size}])
    turned_photo(images)
    row = load_coco_detection(images, annotations)[0]
    assert row["image"].size == (40, 100) and row["objects"]["bbox"] == [shown]
    assert row["objects"]["area"] == [shown[2] * shown[3]]
    assert row["frame"] == {"size": measured[0], "orientation": measured[1], "image_size": [40, 100]}
    x, y, w, h = shown
    found = {"boxes": [[x, y, x + w, y + h]], "labels": [1], "scores": [0.5]}
    (result,) = coco_results([found], [100], category_ids(annotations), frames=[row["frame"]])
    assert result["bbox"] == bbox and result["category_id"] == 18


def test_a_photo_that_could_be_read_both_ways_is_an_error_and_said_to_be_one_it_is_read(folder):
    images, annotations = folder(
        [{"bbox": [5, 5, 30, 20], "area": 300}], images=[{**IMAGE, "width": 100, "height": 40}]
    )
    turned_photo(images)
    with pytest.raises(
        ValueError,
        match=r'1 of 1 images are turned by EXIF, .* as shown as well as as stored; pass frame="shown" or '
        r'frame="stored"; the first: .*0.png has 100 x 40 pixels and EXIF orientation 6, the JSON says 100 x 40',
    ):
        load_coco_detection(images, annotations)
    for frame, bbox in (("shown", [5, 5, 30, 20]), ("stored", [15, 5, 20, 30]), ("json", [15, 5, 20, 30])):
        objects = load_coco_detection(images, annotations, frame=frame)[0]["objects"]
        assert objects["bbox"] == [bbox] and objects["area"] == [300]


@pytest.mark.parametrize(
    "size", [{"width": -1, "height": -1}, {"width": None, "height": None}, {"width": 0, "height": 64}]
)
def test_a_size_that_is_none_is_read_from_the_picture(folder, size):
    assert box_of(folder, images=[{**IMAGE, **size}])["objects"]["bbox"] == [[1, 1, 9, 9]]


def test_boxes_of_a_resized_folder_are_scaled_with_it_and_areas_too(folder, caplog):
    images = [{"id": 100 + i, "file_name": f"{i}.png", "width": 128, "height": 96} for i in range(2)]
    boxes = [{"bbox": [100, 80, 20, 10], "area": 100}, {"bbox": [2, 2, 10, 10], "image_id": 101}]
    dataset = load_coco_detection(*folder(boxes, images=images))
    assert dataset[0]["objects"]["bbox"] == [[50, 40, 10, 5]] and dataset[0]["objects"]["area"] == [25]
    assert dataset[1]["objects"]["bbox"] == [[1, 1, 5, 5]] and dataset[1]["objects"]["area"] == [25]
    (message,) = warnings_of(caplog)
    assert (
        "2 of 2 images have another size than the JSON says; their boxes fit them only at the JSON's size" in message
    )


def test_an_enlarged_folder_is_an_error_that_names_both_sizes(folder):
    images = [{**IMAGE, "width": 32, "height": 24}]
    with pytest.raises(
        ValueError, match=r"1 of 1 images .* 0.png has 64 x 48 pixels, the JSON says 32 x 24".replace(" 0", ".*0")
    ):
        box_of(folder, images=images)
    paths = folder([{"bbox": [1, 1, 9, 9]}], images=images)
    assert load_coco_detection(*paths, frame="json")[0]["objects"]["bbox"] == [[2, 2, 18, 18]]
    with pytest.raises(ValueError, match="has no image that can be used"):
        load_coco_detection(*paths, on_bad_row="skip")


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
