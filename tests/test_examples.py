"""The example scripts run, from their command lines, on digits and on a folder in COCO's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.launch import ACCELERATE


EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCH = (*ACCELERATE[1:], "--multi_gpu", "--num_processes", "2")  # without a GPU too: --cpu would start one process
FEW = "--max_steps 2 --per_device_train_batch_size 4 --num_train_images 16 --eval_strategy no --report_to none --use_cpu true"
FEW += " --load_best_model_at_end false"


def run(script: str, *options: str, launcher: tuple[str, ...] = ()) -> None:
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not part of the installed package")
    subprocess.run([sys.executable, *launcher, EXAMPLES / script, *FEW.split(), *options], check=True)


def test_ocr_is_pretrained_and_tuned(tmp_path):
    run("pretrain_ocr.py", "--output_dir", f"{tmp_path}/mle")
    run("tune_ocr.py", "--model", f"{tmp_path}/mle", "--output_dir", f"{tmp_path}/tuned")
    assert (tmp_path / "tuned" / "model.safetensors").exists()


def test_detection_is_pretrained_and_tuned_for_both_rewards(tmp_path):
    run("pretrain_detection.py", "--output_dir", f"{tmp_path}/mle")
    for reward in ("recall", "map"):
        options = ("--model", f"{tmp_path}/mle", "--reward", reward, "--output_dir", f"{tmp_path}/{reward}")
        run("tune_detection.py", *options)
        assert (tmp_path / reward / "model.safetensors").exists()


def test_detection_runs_under_accelerate_launch_with_two_processes(tmp_path):
    run("pretrain_detection.py", "--output_dir", f"{tmp_path}/mle", launcher=LAUNCH)
    options = ("--model", f"{tmp_path}/mle", "--output_dir", f"{tmp_path}/tuned")
    run("tune_detection.py", *options, launcher=LAUNCH)
    assert (tmp_path / "tuned" / "model.safetensors").exists()


def test_detection_is_pretrained_on_a_folder_in_cocos_form(tmp_path):
    from vision_rl.data.digit_scenes import digit_scenes

    content = {"images": [], "annotations": [], "categories": [{"id": 10 + c, "name": str(c)} for c in range(10)]}
    for index, row in enumerate(digit_scenes("train", 8, size=48)):
        row["image"].save(tmp_path / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png", "width": 48, "height": 48})
        for bbox, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            annotation = {"image_id": index, "bbox": bbox, "category_id": 10 + category, "area": bbox[2] * bbox[3]}
            content["annotations"].append({"id": len(content["annotations"]) + 1, "iscrowd": 0, **annotation})
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    images, boxes = ("--images_dir", str(tmp_path)), str(tmp_path / "boxes.json")
    evaluated = ("--eval_images_dir", str(tmp_path), "--eval_annotation_file", boxes)
    run("pretrain_detection.py", *images, "--annotation_file", boxes, *evaluated, "--output_dir", f"{tmp_path}/mle")
    processor = json.loads((tmp_path / "mle" / "processor_config.json").read_text())
    assert processor["categories"] == list("0123456789")


SMALL = ["--steps", "1", "--num_train_images", "32", "--num_eval_images", "4"]


def test_the_demo_compares_three_models_in_two_situations_and_draws_them(tmp_path):
    subprocess.run([sys.executable, EXAMPLES / "demo.py", *SMALL, "--output_dir", tmp_path], check=True)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["crowded", "incomplete"]
    assert all(list(rows) == ["mle", "mle_continued", "tuned_map"] for rows in results.values())
    assert (tmp_path / "before_after.png").stat().st_size > 50_000


def test_the_study_measures_every_row_and_goes_on_from_what_is_there(tmp_path):
    out = ["--work_dir", f"{tmp_path}/work", "--output", f"{tmp_path}/results.json"]
    command = [EXAMPLES / "detection_study.py", *SMALL, *out, "--seeds", "0", "1", "--learning_rates", "1e-4"]
    subprocess.run([sys.executable, *command], check=True)
    first = json.loads((tmp_path / "results.json").read_text())
    assert len(first["rows"]) == 6 and len(first["rows"]["tuned_map"]["map_confidence"]["seeds"]) == 2
    trained = {path: path.stat().st_mtime for path in (tmp_path / "work").rglob("model.safetensors")}
    assert len(trained) == 8
    subprocess.run([sys.executable, *command], check=True)
    assert {path: path.stat().st_mtime for path in trained} == trained
    assert json.loads((tmp_path / "results.json").read_text()) == first
