"""`vision-rl prepare` makes a folder that every other command and `load_dataset` take, with all the source's columns."""

import io
import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi
from loopback_hub import TOKEN, LoopbackHub
from PIL import Image

from vision_rl.cli import main, preparation
from vision_rl.columns import NUM_SAMPLED_ROWS, sampled_rows
from vision_rl.data.coco import category_names, load_coco_detection
from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.tasks.detection import DetectionProcessor


@pytest.fixture
def coco(tmp_path) -> Path:
    """Two folders in COCO's form, one with boxes and one with panoptic maps."""
    folder = tmp_path / "coco"
    for split, count in (("train", 6), ("validation", 3)):
        boxes, maps, images = [], [], []
        (folder / split).mkdir(parents=True)
        for index, row in enumerate(digit_scenes(split, count, annotations=["objects", "segmentation"])):
            row["image"].save(folder / split / f"{index}.png")
            Image.fromarray(np.asarray(row["segmentation"])).save(folder / split / f"map{index}.png")
            images.append({"id": 100 + index, "file_name": f"{index}.png", "width": 64, "height": 64})
            for bbox, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
                box = {"image_id": 100 + index, "bbox": bbox, "category_id": 20 + 2 * category, "iscrowd": 0}
                boxes.append({"id": len(boxes), "area": 1.0 + len(boxes), **box})
            maps.append(
                {"image_id": 100 + index, "file_name": f"map{index}.png", "segments_info": row["segments_info"]}
            )
        digits = [{"id": 20 + 2 * digit, "name": f"digit {digit}"} for digit in range(10)]
        for name, annotations, categories in (("boxes", boxes, digits), ("maps", maps, list(PANOPTIC_CATEGORIES))):
            content = {"images": images, "annotations": annotations, "categories": categories}
            (folder / f"{name}_{split}.json").write_text(json.dumps(content))
    return folder


def run(command: str) -> None:
    assert main(command.split()) == 0


def boxes_of(coco: Path) -> str:
    files = f"--images_dir {coco}/train --annotation_file {coco}/boxes_train.json"
    return f"{files} --eval_images_dir {coco}/validation --eval_annotation_file {coco}/boxes_validation.json"


def test_the_prepared_rows_are_those_of_the_folder_with_the_images_bytes_inside(coco, tmp_path):
    run(f"prepare --task detection {boxes_of(coco)} --output_dir {tmp_path}/rows --shard_size 20KB")
    prepared = datasets.load_dataset(str(tmp_path / "rows"))
    assert {split: len(rows) for split, rows in prepared.items()} == {"train": 6, "validation": 3}
    assert len(list((tmp_path / "rows" / "data").glob("train-*.parquet"))) > 1
    source = load_coco_detection(coco / "train", coco / "boxes_train.json")
    assert prepared["train"].features["objects"] == source.features["objects"]
    for ours, theirs in zip(prepared["train"], source, strict=True):
        assert ours["image"].tobytes() == theirs["image"].tobytes()
        assert (ours["image_id"], ours["objects"]) == (theirs["image_id"], theirs["objects"])
    bytes_inside = prepared["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    assert bytes_inside == (coco / "train" / "0.png").read_bytes()


def test_the_card_says_source_licence_counts_and_columns(coco, tmp_path):
    about = "--license cc-by-4.0 --source COCO-2017"
    run(f"prepare --task detection {boxes_of(coco)} {about} --output_dir {tmp_path}/rows")
    card = (tmp_path / "rows" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    for line in (
        "* Source: COCO-2017",
        "* License: cc-by-4.0",
        "| train | 6 |",
        "| validation | 3 |",
        "| `objects` |",
    ):
        assert line in card


SIZES = "--image_size 32 --encoder_hidden_size 32 --encoder_layers 1 --encoder_heads 2 --encoder_mlp_size 64"
SIZES += " --decoder_hidden_size 32 --decoder_layers 1 --decoder_heads 2 --decoder_mlp_size 64"
FEW = "--max_steps 1 --per_device_train_batch_size 2 --report_to none --use_cpu true --save_strategy no"


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_prepared_folder_is_trained_on_and_evaluated_with_cocos_category_ids(coco, tmp_path, streaming):
    run(f"prepare --task detection {boxes_of(coco)} --output_dir {tmp_path}/rows")
    data = f"--dataset_name {tmp_path}/rows"
    stream = f"--dataset_streaming {streaming} --shuffle_dataset {'false' if streaming == 'true' else 'true'}"
    options = f"--max_boxes 3 --num_bins 16 {FEW} {stream}"
    run(f"mle --task detection {data} {SIZES} {options} --output_dir {tmp_path}/mle")
    processor = json.loads((tmp_path / "mle" / "processor_config.json").read_text())
    assert processor["category_ids"] == list(range(20, 40, 2)) and processor["categories"][3] == "digit 3"
    run(f"tune --model {tmp_path}/mle {data} --reward map {FEW} {stream} --output_dir {tmp_path}/map")
    run(f"eval --model {tmp_path}/map {data} --use_cpu true")
    assert json.loads((tmp_path / "map" / "eval" / "metrics.json").read_text())["images"] == 3


def test_a_prepared_panoptic_folder_brings_its_categories(coco, tmp_path):
    files = f"--images_dir {coco}/train --masks_dir {coco}/train --annotation_file {coco}/maps_train.json"
    run(f"prepare --task panoptic {files} --output_dir {tmp_path}/rows")
    sizes = "--image_size 32 --hidden_size 32 --encoder_layers 1 --decoder_layers 1 --heads 2 --mlp_size 64"
    codes = "--num_codes 8 --code_len 4"
    run(f"stage1 --task panoptic --dataset_name {tmp_path}/rows {sizes} {codes} {FEW} --output_dir {tmp_path}/stage1")
    processor = json.loads((tmp_path / "stage1" / "processor_config.json").read_text())
    assert [category["id"] for category in processor["categories"]] == [c["id"] for c in PANOPTIC_CATEGORIES]


@pytest.mark.parametrize(
    "options, told",
    [
        ("", "needs --output_dir: the folder that it will make"),
        ("--output_dir {tmp_path}/coco", "is not empty"),
        ("--output_dir {tmp_path}/rows --shard_size many", "shard_size must be a number with one of KB, MB, GB"),
    ],
)
def test_wrong_input_is_told(coco, tmp_path, capsys, options, told):
    arguments = f"prepare --task detection {boxes_of(coco)} {options.format(tmp_path=tmp_path)}"
    assert main(arguments.split()) == 1
    assert told in capsys.readouterr().err


def test_no_data_at_all_is_told(tmp_path, capsys):
    assert main(f"prepare --task detection --output_dir {tmp_path}/rows".split()) == 1
    assert "There is no data to prepare" in capsys.readouterr().err


def test_prepared_scenes_know_the_names_of_their_classes(tmp_path):
    run(f"prepare --task detection --scenes 8 --output_dir {tmp_path}/rows")
    rows = datasets.load_dataset(str(tmp_path / "rows"), split="train")
    assert category_names(rows) == category_names(digit_scenes("train", 1)) == list("0123456789")
    model = " ".join(
        f"--{part}_hidden_size 16 --{part}_layers 1 --{part}_heads 2 --{part}_mlp_size 16"
        for part in ("encoder", "decoder")
    )
    run(
        f"mle --task detection --image_size 32 --num_bins 32 --max_boxes 4 {model} --dataset_name {tmp_path}/rows "
        f"--max_steps 1 --per_device_train_batch_size 4 --eval_strategy no --report_to none --use_cpu true "
        f"--output_dir {tmp_path}/mle"
    )
    assert DetectionProcessor.from_pretrained(tmp_path / "mle").categories == list("0123456789")


# --- a data set that is prepared -------------------------------------------------------------------------------------------


def texts(count: int, **changed: object) -> datasets.Dataset:
    """Rows of pictures as files' bytes with their texts, some of which are changed."""
    rows = [{"image": {"bytes": png(index), "path": None}, "text": str(index)} for index in range(count)]
    for column, values in changed.items():
        for row, value in values.items():
            rows[row][column] = value
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(0, 255, (24, 24, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def lengths(folder: Path) -> dict[str, int]:
    return {split: len(rows) for split, rows in datasets.load_dataset(str(folder)).items()}


def test_a_prepared_set_that_is_prepared_again_keeps_cocos_category_ids(coco, tmp_path):
    run(f"prepare --task detection {boxes_of(coco)} --output_dir {tmp_path}/once")
    run(f"prepare --task detection --dataset_name {tmp_path}/once --output_dir {tmp_path}/twice")
    once, twice = (json.loads((tmp_path / name / "categories.json").read_text()) for name in ("once", "twice"))
    assert once == twice and once["categories"][0]["id"] == 20
    run(f"prepare --task panoptic --scenes 3 --max_eval_rows 2 --output_dir {tmp_path}/scenes")  # known to the task
    of_scenes = json.loads((tmp_path / "scenes" / "categories.json").read_text())["categories"]
    assert [each["id"] for each in of_scenes] == [each["id"] for each in PANOPTIC_CATEGORIES]


def test_limits_and_names_of_splits_are_honoured(tmp_path):
    datasets.DatasetDict(train=texts(9), validation=texts(6), test=texts(5)).save_to_disk(str(tmp_path / "rows"))
    prepare = f"prepare --task ocr --dataset_name {tmp_path}/rows --output_dir {tmp_path}"
    run(f"{prepare}/few --max_train_rows 4 --max_eval_rows 3")
    assert lengths(tmp_path / "few") == {"train": 4, "validation": 3, "test": 3}
    run(f"{prepare}/named --dataset_test_split test --max_eval_rows 9")
    assert lengths(tmp_path / "named") == {"train": 9, "validation": 5}
    assert main(f"{prepare}/none --dataset_train_split trian".split()) == 1 and not (tmp_path / "none").exists()


def test_columns_of_other_names_are_written_under_the_usual_ones(tmp_path):
    rows = texts(3).rename_columns({"image": "photo", "text": "words"})
    rows.save_to_disk(str(tmp_path / "rows"))
    names = ["--image_column", "photo", "--target_columns", '{"text": "words"}']
    command = f"prepare --task ocr --dataset_name {tmp_path}/rows --output_dir {tmp_path}/out".split()
    assert main(command) == 1
    assert main([*command, *names]) == 0
    assert set(datasets.load_dataset(str(tmp_path / "out"))["train"].column_names) == {"image", "text"}


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"text": {1: None, 4: None}}, "train: Row 1, column `text`: text must be a string"),
        ({"image": {2: {"bytes": png(0)[:300], "path": None}, 5: None}}, "train: Row 2, column `image`: "),
        ({"image": {0: None, 1: {"bytes": b"none", "path": "a.png"}}}, "Row 0, column `image`: there is no picture"),
    ],
)
def test_rows_without_a_target_or_a_whole_picture_are_refused_and_nothing_is_written(tmp_path, capsys, changed, told):
    texts(6, **changed).save_to_disk(str(tmp_path / "rows"))
    assert main(f"prepare --task ocr --dataset_name {tmp_path}/rows --output_dir {tmp_path}/out".split()) == 1
    error = capsys.readouterr().err
    assert told in error and "(2 of 6 rows cannot be used.)" in error
    assert not list((tmp_path / "out").iterdir())


def test_pictures_that_the_rows_name_by_their_paths_are_inside_of_what_is_written(tmp_path, capsys):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    rows = [{"image": str(tmp_path / f"{index}.png"), "text": str(index)} for index in range(3)]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(f"prepare --task ocr --dataset_name {tmp_path}/rows --output_dir {tmp_path}/out")
    written = datasets.load_dataset(str(tmp_path / "out"), split="train").cast_column(
        "image", datasets.Image(decode=False)
    )
    assert [row["bytes"] for row in written["image"]] == [png(index) for index in range(3)]
    pixels = datasets.Dataset.from_dict({"image": [[[1, 2], [3, 4]]] * 2, "text": ["a", "b"]})
    pixels.save_to_disk(str(tmp_path / "pixels"))
    assert main(f"prepare --task ocr --dataset_name {tmp_path}/pixels --output_dir {tmp_path}/none".split()) == 1
    assert "the column `image` holds List(List(" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_file_of_captions_which_has_no_categories_is_prepared(coco, tmp_path):
    images = json.loads((coco / "boxes_train.json").read_text())["images"]
    captions = [{"id": index, "image_id": 100 + index, "caption": "a digit"} for index in range(len(images))]
    (coco / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    files = f"--images_dir {coco}/train --annotation_file {coco}/captions.json"
    run(f"prepare --task captioning {files} --output_dir {tmp_path}/rows")
    assert lengths(tmp_path / "rows") == {"train": 6} and not (tmp_path / "rows" / "categories.json").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_categories_are_read_in_every_encoding_of_json(coco, tmp_path, encoding):
    for file in coco.glob("*.json"):
        file.write_text(file.read_text(), encoding=encoding)
    run(f"prepare --task detection {boxes_of(coco)} --output_dir {tmp_path}/rows")
    written = json.loads((tmp_path / "rows" / "categories.json").read_text())["categories"]
    assert [category["id"] for category in written] == list(range(20, 40, 2))


@pytest.mark.parametrize(
    "bad, told",
    [
        (lambda ids: ids[:, 4:].fill(77), "column `segmentation`: 1 segment ids of the map are not in segments_info"),
        (lambda ids: ids.fill(0), "column `segments_info`: 1 segments have no pixel in the map; the first is 1."),
    ],
)
def test_the_maps_of_all_rows_are_looked_at_not_only_of_those_that_a_training_opens(
    tmp_path, capsys, caplog, bad, told
):
    count, wrong = NUM_SAMPLED_ROWS + 1, 101
    assert wrong not in sampled_rows(range(count))
    maps = []
    for row in range(count):
        ids = np.zeros((8, 8), np.uint8)
        ids[:, :4] = 1
        if row == wrong:
            bad(ids)
        maps.append(Image.fromarray(ids))
    segments = {name: datasets.Value("int64") for name in ("id", "category_id", "iscrowd")}
    features = {
        "image": datasets.Image(),
        "segmentation": datasets.Image(),
        "segments_info": datasets.List(segments),
    }
    category = PANOPTIC_CATEGORIES[0]
    infos = [{"id": 1, "category_id": category["id"], "iscrowd": 0}]
    rows = [{"image": Image.new("RGB", (8, 8)), "segmentation": ids, "segments_info": infos} for ids in maps]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "categories.json").write_text(json.dumps({"categories": [category]}))
    prepare = f"prepare --task panoptic --dataset_name {tmp_path}/rows --categories_file {tmp_path}/categories.json"
    assert main(f"{prepare} --output_dir {tmp_path}/out".split()) == 1
    assert f"train: Row {wrong}, {told}" in capsys.readouterr().err
    run(f"{prepare} --output_dir {tmp_path}/out --on_bad_annotation skip")
    assert lengths(tmp_path / "out") == {"train": count - 1} and "(1 of 201 rows cannot be used.)" in caplog.text


def test_rows_that_cannot_be_used_are_left_out_and_counted_where_the_task_may(tmp_path, capsys, caplog):
    rows = texts(6, image={2: {"bytes": png(0)[:300], "path": None}}).add_column("captions", [["a"]] * 3 + [[]] * 3)
    rows.save_to_disk(str(tmp_path / "rows"))
    prepare = f"prepare --task captioning --dataset_name {tmp_path}/rows --output_dir {tmp_path}/out"
    assert main(prepare.split()) == 1
    assert "leave them out with --on_bad_annotation skip" in capsys.readouterr().err
    run(f"{prepare} --on_bad_annotation skip")
    assert lengths(tmp_path / "out") == {"train": 2}
    assert "(1 of 6 rows cannot be used.) They are left out." in caplog.text
    assert "(3 of 5 rows cannot be used.) They are left out." in caplog.text


def test_a_folder_that_is_prepared_anew_is_not_read_from_a_cache(tmp_path):
    for place, count in (("a", 3), ("b", 2), ("a", 4)):
        for name in ("rows", "out"):
            shutil.rmtree(tmp_path / place / name, ignore_errors=True)
        datasets.DatasetDict(train=texts(count), extra=texts(1)).save_to_disk(str(tmp_path / place / "rows"))
        run(f"prepare --task ocr --dataset_name {tmp_path}/{place}/rows --output_dir {tmp_path}/{place}/out")
        assert lengths(tmp_path / place / "out") == {"train": count, "extra": 1}


# --- interruptions ---------------------------------------------------------------------------------------------------------


def test_a_killed_prepare_leaves_nothing_that_can_be_read_and_is_repeated(tmp_path, monkeypatch):
    datasets.DatasetDict(train=texts(4), validation=texts(2)).save_to_disk(str(tmp_path / "rows"))
    left = tmp_path / "left"
    write = preparation.write_shards

    def write_and_copy(rows, folder, split, size):
        count = write(rows, folder, split, size)
        shutil.copytree(tmp_path / "out", left, dirs_exist_ok=True)  # what a kill at this moment leaves
        return count

    monkeypatch.setattr(preparation, "write_shards", write_and_copy)
    prepare = f"prepare --task ocr --dataset_name {tmp_path}/rows --output_dir"
    run(f"{prepare} {tmp_path}/out")
    monkeypatch.setattr(preparation, "write_shards", write)
    assert list(left.rglob("*.parquet"))
    with pytest.raises((FileNotFoundError, ValueError)):
        datasets.load_dataset(str(left))
    run(f"{prepare} {left}")
    assert lengths(left) == lengths(tmp_path / "out") == {"train": 4, "validation": 2}
    assert {path.name for path in left.iterdir()} == {"README.md", "data"}
    assert main(f"{prepare} {left}".split()) == 1  # whole, so that nothing is written over it


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub() as server:
        monkeypatch.setattr(preparation, "HfApi", partial(HfApi, endpoint=server.url, token=TOKEN))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def test_a_repository_that_cannot_be_made_is_told_before_any_row_is_written(hub, tmp_path, monkeypatch, capsys):
    texts(3).save_to_disk(str(tmp_path / "rows"))
    monkeypatch.setattr(preparation, "HfApi", partial(HfApi, endpoint=hub.url, token="hf_wrong"))
    prepare = f"prepare --task ocr --dataset_name {tmp_path}/rows --push_to_hub user/texts --output_dir {tmp_path}/out"
    assert main(prepare.split()) == 1
    told = capsys.readouterr()
    assert "The data set user/texts cannot be made on the Hub" in told.err and "hf auth login" in told.err
    assert not list((tmp_path / "out").iterdir()) and "rows in" not in told.out


def test_after_a_failed_upload_the_command_that_uploads_the_folder_is_told(hub, tmp_path, monkeypatch, capsys):
    texts(3).save_to_disk(str(tmp_path / "rows"))
    prepare = f"prepare --task ocr --dataset_name {tmp_path}/rows --push_to_hub user/texts --output_dir {tmp_path}/out"
    with monkeypatch.context() as broken:
        broken.setattr(hub.hub, "commit", lambda *given: 1 / 0)  # the connection breaks off
        assert main(prepare.split()) == 1
    assert f"hf upload user/texts {tmp_path}/out . --repo-type dataset" in capsys.readouterr().err
    assert lengths(tmp_path / "out") == {"train": 3}
    run(prepare.replace("/out", "/again"))
    assert any(name.endswith(".parquet") for name in hub.files("user/texts", "datasets"))
