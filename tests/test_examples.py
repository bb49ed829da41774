"""The example scripts run, from their command lines, on digits and on a folder in COCO's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.launch import ACCELERATE


EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCH = (*ACCELERATE[1:], "--multi_gpu", "--num_processes", "2")  # without a GPU too: --cpu would start one process
FEW = "--max_steps 2 --per_device_train_batch_size 4 --eval_strategy no --report_to none --use_cpu true"
FEW += " --load_best_model_at_end false"
FEW_SCENES = (*FEW.split(), "--num_train_images", "16")


def run(script: str, *options: str, launcher: tuple[str, ...] = (), common: tuple[str, ...] = FEW_SCENES) -> None:
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not part of the installed package")
    subprocess.run([sys.executable, *launcher, EXAMPLES / script, *common, *options], check=True)


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


def test_panoptic_segmentation_is_trained_in_both_stages_and_tuned_for_pq(tmp_path):
    few = (*FEW_SCENES, "--num_eval_images", "4")
    run("train_uvim_stage1.py", "--output_dir", f"{tmp_path}/stage1", common=few)
    run("pretrain_panoptic.py", "--stage1", f"{tmp_path}/stage1", "--output_dir", f"{tmp_path}/mle", common=few)
    run("tune_panoptic.py", "--model", f"{tmp_path}/mle", "--output_dir", f"{tmp_path}/pq", common=few)
    assert (tmp_path / "pq" / "stage1" / "model.safetensors").exists()
    results = json.loads(study("panoptic", tmp_path, "--num_train_images", "32", "--num_eval_images", "8").read_text())
    assert set(results["rows"]["tuned 0.0001"]) >= {"pq", "sq", "rq", "greedy_reward", "sampled_reward"}


@pytest.fixture
def photos_folder(tmp_path):
    from vision_rl.data.digit_scenes import digit_scenes

    (tmp_path / "photos").mkdir()
    for index, row in enumerate(digit_scenes("train", 45, size=48)):
        row["image"].save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_colorization_is_trained_in_both_stages_tuned_studied_and_hacked(photos_folder, tmp_path):
    data = ("--images_dir", str(photos_folder))
    few = (*FEW.split(), *data)
    stage1 = ("--task", "colorization", "--output_dir", f"{tmp_path}/stage1")
    run("train_uvim_stage1.py", *stage1, common=few)
    run("pretrain_colorization.py", "--stage1", f"{tmp_path}/stage1", "--output_dir", f"{tmp_path}/mle", common=few)
    run("tune_colorization.py", "--model", f"{tmp_path}/mle", "--output_dir", f"{tmp_path}/vivid", common=few)
    assert (tmp_path / "vivid" / "stage1" / "model.safetensors").exists()

    results = json.loads(study("colorization", tmp_path, *data).read_text())
    assert list(results["rows"]) == ["stage1", "mle", "mle_continued 0.0001", "tuned 0.0001"]
    assert len(results["rows"]["tuned 0.0001"]["psnr"]["seeds"]) == 2

    paths = ("--model", f"{tmp_path}/mle", "--work_dir", f"{tmp_path}/runs", "--pictures_dir", f"{tmp_path}")
    steps = ("--steps", "2", "--eval_steps", "1", "--output", f"{tmp_path}/hacking.json")
    run("colorization_hacking.py", *paths, *steps, common=data)
    results = json.loads((tmp_path / "hacking.json").read_text())
    assert [point["step"] for point in results["curves"]["reward alone"]] == [0, 1, 2]
    assert (tmp_path / "reward_hacking.png").exists() and (tmp_path / "reward_hacking_curves.png").exists()


def study(task: str, folder: Path, *data: str) -> Path:
    """The results of the study of a task with codes, in a few steps."""
    steps = (
        "--mle_steps 16 --steps 1 --control_steps 1 --seeds 0 1 --learning_rates 1e-4 --control_learning_rates 1e-4"
    )
    paths = ("--work_dir", f"{folder}/work", "--output", f"{folder}/results.json", "--picture", f"{folder}/study.png")
    run("dense_study.py", "--task", task, "--stage1", f"{folder}/stage1", *data, *steps.split(), *paths, common=())
    assert (folder / "study.png").stat().st_size > 10_000
    return folder / "results.json"


@pytest.fixture
def captions_folder(tmp_path):
    """Scenes with captions in COCO's form, a tiny ViT and a tiny BERT with a WordPiece vocabulary; the options for them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

    from vision_rl.data.digit_scenes import digit_scenes

    content: dict[str, list] = {"images": [], "annotations": []}
    for index, row in enumerate(digit_scenes("train", 56, size=48, annotations=["captions"])):
        row["image"].save(tmp_path / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png"})
        content["annotations"] += [{"image_id": index, "caption": caption} for caption in row["captions"]]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    words = sorted({word for annotation in content["annotations"] for word in annotation["caption"].split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *{word.rstrip(",") for word in words}, ","]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "bert")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), intermediate_size=64, **size)).save_pretrained(tmp_path / "bert")
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **size)).save_pretrained(tmp_path / "vit")
    model = f"--encoder {tmp_path}/vit --decoder {tmp_path}/bert --image_size 28 --num_encoder_layers 1"
    data = f"--images_dir {tmp_path} --annotation_file {tmp_path}/captions.json"
    return [*model.split(), "--num_decoder_layers", "1"], data.split()


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_captioner_is_pretrained_and_tuned_for_cider(captions_folder, tmp_path, frozen):
    model, data = captions_folder
    common = (*FEW.split(), "--max_completion_length", "12", "--freeze_encoder", frozen, *data)
    run("pretrain_captioning.py", *model, "--output_dir", f"{tmp_path}/mle", common=common)
    run("tune_captioning.py", "--model", f"{tmp_path}/mle", "--output_dir", f"{tmp_path}/tuned", common=common)
    assert (tmp_path / "tuned" / "reward" / "cider" / "document_frequency.npz").exists()


def test_the_captioning_study_compares_tuning_with_its_control(captions_folder, tmp_path):
    model, data = captions_folder
    steps = "--mle_steps 4 --steps 2 --control_steps 2 --seeds 0 1 --learning_rates 1e-4 --control_learning_rates 1e-4"
    paths = ("--work_dir", f"{tmp_path}/work", "--output", f"{tmp_path}/captioning.json")
    run("captioning_study.py", *model, "--freeze_encoder", "true", *data, *steps.split(), *paths, common=())
    results = json.loads((tmp_path / "captioning.json").read_text())
    assert list(results["rows"]) == ["mle 0.0003", "mle_continued 0.0001", "tuned 0.0001"]
    assert len(results["rows"]["tuned 0.0001"]["cider"]["seeds"]) == 2 and len(results["captions"]) == 8
