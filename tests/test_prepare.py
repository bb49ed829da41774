"""`vision-rl prepare` makes a folder that every other command and `load_dataset` take, with all the source's columns."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vision_rl.cli import main
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
