"""The example scripts run from their command lines, on digits and on a folder in COCO's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts.launch import ACCELERATE

from vision_rl.cli import main


EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCH = (*ACCELERATE[1:], "--multi_gpu", "--num_processes", "2")  # without a GPU too: --cpu would start one
FEW = ("--mle_steps", "2", "--tune_steps", "2")


@pytest.fixture
def run(script, monkeypatch):
    """Runs an example with options and returns what it prints. Its results are in the folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return lambda name, folder, *options: script(EXAMPLES / name, "--output_dir", folder, *FEW, *options)


def test_every_example_is_short_enough_to_read_at_a_sitting():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path


def test_ocr_is_trained_and_tuned(tmp_path, run):
    assert "eval_cer" in run("ocr.py", tmp_path, "--scenes", "32")
    assert (tmp_path / "tuned" / "model.safetensors").exists()
    assert Image.open(tmp_path / "readings.png").width > 500


def test_detection_is_trained_and_tuned_on_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command = [sys.executable, *LAUNCH, EXAMPLES / "detection.py", "--output_dir", tmp_path, *FEW, "--scenes", "64"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert printed.count("eval_map:") == 1
    assert (tmp_path / "tuned" / "model.safetensors").exists()
    assert Image.open(tmp_path / "boxes.png").width > 1000


def test_detection_goes_to_the_categories_of_a_folder_in_cocos_form(tmp_path, run):
    from vision_rl.data.digit_scenes import digit_scenes

    content = {"images": [], "annotations": [], "categories": [{"id": 10 + c, "name": str(9 - c)} for c in range(10)]}
    for index, row in enumerate(digit_scenes("train", 70, size=48)):
        row["image"].save(tmp_path / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png", "width": 48, "height": 48})
        for bbox, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            annotation = {"image_id": index, "bbox": bbox, "category_id": 10 + category, "area": bbox[2] * bbox[3]}
            content["annotations"].append({"id": len(content["annotations"]) + 1, "iscrowd": 0, **annotation})
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    folder = ("--images_dir", str(tmp_path), "--annotation_file", str(tmp_path / "boxes.json"))
    run("detection.py", tmp_path / "out", *folder)
    processor = json.loads((tmp_path / "out" / "tuned" / "processor_config.json").read_text())
    assert processor["categories"] == list("9876543210")


def test_captions_are_learned_and_tuned_for_cider(tmp_path, run):
    assert "CIDEr:" in run("captioning.py", tmp_path, "--scenes", "32")
    assert (tmp_path / "tuned" / "reward" / "cider" / "document_frequency.npz").exists()
    assert Image.open(tmp_path / "captions.png").width > 500


def test_panoptic_segmentation_is_trained_in_both_stages_and_tuned_for_pq(tmp_path, run):
    assert "PQ:" in run("panoptic.py", tmp_path, "--scenes", "32", "--stage1_steps", "2")
    assert (tmp_path / "tuned" / "stage1" / "model.safetensors").exists()
    assert Image.open(tmp_path / "maps.png").width > 500


def test_colorization_is_trained_and_tuned_from_the_stage_one_of_the_command_line(tmp_path, run):
    """Stage I is trained by the command in the example's docstring, in two steps."""
    lines = (EXAMPLES / "colorization.py").read_text().split("vision-rl stage1", 1)[1].split("python examples", 1)[0]
    options = lines.replace("\\", " ").replace("runs/colorization", str(tmp_path)).split()
    few = ("--scenes", "32", "--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true")
    assert main(["stage1", *options, *few]) == 0
    assert "eval_psnr" in run("colorization.py", tmp_path, "--stage1", f"{tmp_path}/stage1", "--scenes", "32")
    assert Image.open(tmp_path / "pictures.png").width > 500


def test_a_trocr_with_its_own_processor_is_tuned(tmp_path, run):
    assert "Of the right length" in run("trocr.py", tmp_path, "--scenes", "32")
    again = run("trocr.py", tmp_path, "--scenes", "32", "--model", f"{tmp_path}/tuned", "--mle_steps", "0")
    assert "Of the right length" in again
