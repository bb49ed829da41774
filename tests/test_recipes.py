"""The package's recipes have the paper's numbers, and start from each other's outputs; every chain runs at toy size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scripts.launch import ACCELERATE

from vision_rl.cli import main
from vision_rl.cli.parser import recipe_files
from vision_rl.cli.reading import read_training
from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.models import vit_encoder
from vision_rl.models.uvim.conversion import vit_entries


RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in recipe_files()}

# Images a step, learning rate, learning rate of the encoder, weight decay, steps, warm-up steps: from UViM's own
# configs and the paper's Tables 4 to 7.
PUBLISHED = {
    "panoptic_stage1": (1024, 4e-4, None, 4e-5, 111_515, 4000),
    "panoptic_mle": (512, 1e-3, 1e-4, 1e-6, 44_606, 4000),
    "panoptic_pq": (128, 1e-6, None, 0, 30_000, 4000),
    "colorization_stage1": (1024, 4e-4, None, 4e-5, 124_714, 4000),
    "colorization_mle": (512, 1e-3, 1e-4, 1e-6, 124_714, 4000),
    "colorization_colorfulness": (512, 3e-7, None, 0, 1000, 0),
    "detection_objects365_mle": (256, 1e-3, None, 5e-5, 400_000, 20_000),
    "detection_mle": (256, 1e-4, None, 0, 10_000, 1000),
    "detection_recall": (256, 1e-6, None, 0, 100_000, 1000),
    "detection_map": (256, 1e-6, None, 0, 100_000, 1000),
    "captioning_b_mle": (256, 3e-4, 3e-5, 5e-6, 5000, 1000),
    "captioning_b_cider": (256, 1e-5, 1e-6, 0, 10_000, 1000),
    "captioning_l_mle": (256, 3e-4, 3e-5, 5e-6, 5000, 1000),
    "captioning_l_cider": (256, 1e-5, 1e-6, 0, 10_000, 1000),
}
PARAMETERS = {  # in millions; the first four are published models
    "panoptic_stage1": "223.6",
    "colorization_stage1": "132.7",
    "panoptic_mle": "715.7",
    "colorization_mle": "715.7",
    "panoptic_pq": "715.7",
    "detection_mle": "149.4",
    "detection_map": "149.4",
}
BEFORE = {
    "panoptic_mle": "panoptic_stage1",
    "panoptic_pq": "panoptic_mle",
    "colorization_mle": "colorization_stage1",
    "colorization_colorfulness": "colorization_mle",
    "detection_mle": "detection_objects365_mle",
    "detection_recall": "detection_mle",
    "detection_map": "detection_mle",
    "captioning_b_cider": "captioning_b_mle",
    "captioning_l_cider": "captioning_l_mle",
}


def test_the_package_has_a_recipe_for_every_run_of_tables_4_to_7():
    assert set(RECIPES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_batch_the_rates_and_the_steps_that_were_published(name):
    args = read_training(RECIPES[name]["command"], ["--config", name, "--use_cpu", "true"]).training
    images = args.per_device_train_batch_size * args.gradient_accumulation_steps
    rates = (args.learning_rate, args.encoder_learning_rate, args.weight_decay)
    assert (images, *rates, args.max_steps, args.warmup_steps) == PUBLISHED[name]
    assert args.optim == "big_vision_adafactor" and not args.bf16
    assert args.max_grad_norm == (1.0 if name.endswith("stage1") else 0.0)
    tuning = RECIPES[name]["command"] == "tune"
    assert args.lr_scheduler_type == ("constant_with_warmup" if tuning else "cosine")
    if tuning:
        assert (args.num_generations, args.baseline) == (8 if name.startswith("captioning") else 2, "first")
        assert args.temperature == 1 and args.beta == 0 and args.loss_reduction == "sum"


def test_a_recipe_starts_from_the_output_of_the_one_before():
    for name, before in BEFORE.items():
        start = RECIPES[name].get("model", RECIPES[name].get("stage1"))
        assert start == RECIPES[before]["output_dir"], name
    outputs = [recipe["output_dir"] for recipe in RECIPES.values()]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dry_run_tells_sizes_memory_and_what_is_missing_without_data_or_weights(name, capsys):
    command = RECIPES[name]["command"]
    assert main([command, "--config", name, "--dry_run", "true", "--use_cpu", "true"]) == 0
    told = capsys.readouterr().out
    assert f"{PARAMETERS.get(name, '')}" in told.splitlines()[0]
    assert f"{PUBLISHED[name][0]} images" in told and "optimizer" in told
    missing = [line for line in told.splitlines() if line.startswith("missing")]
    assert len(missing) >= 2
    assert command == "stage1" or f"vision-rl eval --config {name}" in told
    if name in BEFORE:
        before = BEFORE[name]
        assert f"`vision-rl {RECIPES[before]['command']} --config {before}`" in told
    for after in (later for later, earlier in BEFORE.items() if earlier == name):
        assert f"vision-rl {RECIPES[after]['command']} --config {after}" in told


def test_a_dry_run_of_a_model_that_is_there_goes_by_its_files(capsys):
    checkpoint = Path(__file__).parents[1] / "experiments" / "checkpoints" / "detection-crowded"
    if not checkpoint.is_dir():
        pytest.skip("the checkpoints are not part of the installed package")
    options = ["--model", str(checkpoint), "--scenes", "20", "--dry_run", "true", "--use_cpu", "true"]
    assert main(["tune", *options, "--task", "detection"]) == 0
    assert "0.9 M parameters" in capsys.readouterr().out.splitlines()[0]
    assert main(["mle", *options, "--task", "detection", "--image_size", "64"]) == 0
    assert "64 patches of an image of 64 pixels" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["panoptic", "detection"])
def test_a_dry_run_without_its_files_names_the_file_that_is_missing(task, tmp_path, capsys):
    options = [
        "--images_dir",
        str(tmp_path),
        "--annotation_file",
        "none.json",
        "--dry_run",
        "true",
        "--use_cpu",
        "true",
    ]
    assert main(["mle", "--task", task, *options]) == 1
    assert "There is no annotation file none.json." in capsys.readouterr().err


def test_a_recipe_is_refused_by_another_command(capsys):
    assert main(["mle", "--config", "detection_map"]) == 1
    assert "is the config of a `vision-rl tune`" in capsys.readouterr().err


# --- the chains run, made small only by overrides --------------------------------------------------------------------


SIZE = 32
FEW = (
    "--max_steps 2 --warmup_steps 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --logging_steps 1"
)
FEW += " --eval_steps 2 --save_steps 2 --report_to none --use_cpu true --disable_tqdm true"
ENCODER = "--encoder_hidden_size 32 --encoder_layers 1 --encoder_heads 2 --encoder_mlp_size 64"
DECODER = "--decoder_hidden_size 32 --decoder_layers 1 --decoder_heads 2 --decoder_mlp_size 64"


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Scenes in COCO's files: `train` and `val`, with boxes, panoptic maps, captions and Karpathy's split."""
    folder = tmp_path_factory.mktemp("coco")
    karpathy = []
    for split, count in (("train", 12), ("val", 4)):
        images, boxes, maps, captions = [], [], [], []
        (folder / split).mkdir()
        (folder / f"panoptic_{split}").mkdir()
        rows = digit_scenes(
            "train" if split == "train" else "validation", count, annotations=["objects", "segmentation", "captions"]
        )
        for index, row in enumerate(rows):
            row["image"].save(folder / split / f"{index}.png")
            Image.fromarray(np.asarray(row["segmentation"])).save(folder / f"panoptic_{split}" / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 64})
            for bbox, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
                box = {"image_id": index, "bbox": bbox, "category_id": 10 + category, "area": bbox[2] * bbox[3]}
                boxes.append({"id": len(boxes) + 1, "iscrowd": 0, **box})
            maps.append({"image_id": index, "file_name": f"{index}.png", "segments_info": row["segments_info"]})
            captions += [
                {"id": len(captions) + i, "image_id": index, "caption": text} for i, text in enumerate(row["captions"])
            ]
            for part in ("train",) if split == "train" else ("val", "test"):
                sentences = [{"raw": text} for text in row["captions"]]
                place = {"filepath": split, "filename": f"{index}.png", "imgid": len(karpathy)}
                karpathy.append({**place, "cocoid": len(karpathy), "split": part, "sentences": sentences})
        digits = [{"id": 10 + digit, "name": str(digit)} for digit in range(10)]
        some = [box for box in boxes if box["category_id"] < 18]  # stand for Objects365
        files = {
            "instances": {"images": images, "annotations": boxes, "categories": digits},
            "objects": {"images": images, "annotations": some, "categories": digits[:8]},
            "panoptic": {"images": images, "annotations": maps, "categories": list(PANOPTIC_CATEGORIES)},
        }
        for name, content in files.items():
            (folder / f"{name}_{split}.json").write_text(json.dumps(content))
    (folder / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    words = sorted(
        {word.strip(".,") for image in karpathy for s in image["sentences"] for word in s["raw"].lower().split()}
    )
    _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", ".", *words]).save_pretrained(folder / "bert")
    _big_vision_vit(folder / "vit.npz")
    return folder


def _wordpiece(vocabulary: list[str]):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _big_vision_vit(path: Path, image_size: int = 64) -> torch.Tensor:
    """Write a small ViT in big_vision's form, and return the weight of its patch embedding."""
    torch.manual_seed(0)
    vit = vit_encoder(image_size, 16, 32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    arrays = {
        entry.name: entry.tensor.detach().permute(*np.argsort(entry.axes)).reshape(entry.shape).numpy()
        for entry in vit_entries(vit, "Transformer", "embedding", "pos_embedding")
    }
    np.savez(path, **arrays)
    return vit.embeddings.patch_embedding.weight


class Chain:
    """Runs the recipes of a task one after the other into a folder, with the same options for the data."""

    def __init__(self, folder: Path, data: str):
        self.folder, self.data = folder, data

    def run(self, name: str, *options: str) -> list[dict]:
        """Run a recipe, and return the log of its training."""
        recipe, output = RECIPES[name], self.folder / name
        start = [
            text
            for key in ("model", "stage1")
            if key in recipe
            for text in (f"--{key}", str(self.folder / BEFORE[name]))
        ]
        words = " ".join([FEW, self.data, *options]).split()
        assert main([recipe["command"], "--config", name, *start, *words, "--output_dir", str(output)]) == 0
        return json.loads((output / "trainer_state.json").read_text())["log_history"]

    def evaluate(self, name: str, *options: str) -> dict[str, float]:
        """Evaluate a recipe's model by the recipe: its row of the table, and its answers to a folder of images."""
        model, words = str(self.folder / name), " ".join([self.data, *options]).split()
        assert main(["eval", "--config", name, "--model", model, *words, "--use_cpu", "true"]) == 0
        images = words[words.index("--images_dir") + 1]
        out = ["--output_dir", str(self.folder / "predicted"), "--use_cpu", "true"]
        assert main(["predict", "--config", name, "--model", model, "--images", f"{images}/**/1*.png", *out]) == 0
        drawn = {path.name for path in (self.folder / "predicted").glob("*.png")}
        assert {"1.png", "10.png"} <= drawn
        return json.loads((self.folder / name / "eval" / "metrics.json").read_text())


def boxes_of(coco: Path, kind: str) -> str:
    files = f"--images_dir {coco}/train --annotation_file {coco}/{kind}_train.json"
    return f"{files} --eval_images_dir {coco}/val --eval_annotation_file {coco}/{kind}_val.json"


def test_the_detection_recipes_go_from_objects365_to_coco_and_to_both_rewards(coco, tmp_path):
    sizes = f"--image_size {SIZE} --num_bins 32 --max_boxes 4 {ENCODER} {DECODER} --encoder_init {coco}/vit.npz"
    first = Chain(tmp_path, f"{boxes_of(coco, 'objects')} --num_categories 8")
    first.run("detection_objects365_mle", sizes)
    chain = Chain(tmp_path, f"{boxes_of(coco, 'instances')} --num_categories 10")
    chain.run("detection_mle", f"--image_size {2 * SIZE} --num_bins 32 --max_boxes 6")
    config = json.loads((tmp_path / "detection_mle" / "config.json").read_text())
    assert (config["encoder"]["image_size"], config["decoder"]["max_position_embeddings"]) == (2 * SIZE, 36)
    for name in ("detection_recall", "detection_map"):
        assert any("reward" in entry for entry in chain.run(name))
        scores = chain.evaluate(name)
        assert len([key for key in scores if key.startswith(("map", "ar_"))]) == 12
    results = json.loads((tmp_path / "detection_map" / "eval" / "detections.json").read_text())
    assert {result["category_id"] for result in results} <= set(range(10, 20))


def dense(coco: Path, task: str) -> str:
    if task == "colorization":
        return f"--images_dir {coco}/train --eval_images_dir {coco}/val"
    files = f"--images_dir {coco}/train --masks_dir {coco}/panoptic_train --annotation_file {coco}/panoptic_train.json"
    files += f" --eval_images_dir {coco}/val --eval_masks_dir {coco}/panoptic_val"
    return f"{files} --eval_annotation_file {coco}/panoptic_val.json --num_categories {len(PANOPTIC_CATEGORIES)}"


STAGE1 = f"--image_size {SIZE} --hidden_size 32 --encoder_layers 1 --decoder_layers 1 --heads 2 --mlp_size 64"


@pytest.mark.parametrize(
    "task, reward, key", [("panoptic", "pq", "pq"), ("colorization", "colorfulness", "vivid_fraction")]
)
def test_the_recipes_with_codes_go_from_stage_1_to_the_reward(coco, tmp_path, task, reward, key):
    chain = Chain(tmp_path, dense(coco, task))
    chain.run(f"{task}_stage1", f"{STAGE1} --num_codes 8 --code_len 4")
    chain.run(f"{task}_mle", f"--encoder_init {coco}/vit.npz {DECODER}")
    assert any("reward" in entry for entry in chain.run(f"{task}_{reward}"))
    assert 0 <= chain.evaluate(f"{task}_{reward}")[key] <= 1
    folder = tmp_path / f"{task}_{reward}"
    assert (folder / "stage1" / "model.safetensors").exists()
    assert len(list((folder / "eval").glob("panoptic/*.png" if task == "panoptic" else "colorized/*.png"))) == 4


@pytest.mark.parametrize("size", ["b", "l"])
def test_the_captioning_recipes_go_from_a_pretrained_vit_to_cider(coco, tmp_path, size):
    chain = Chain(tmp_path, f"--images_dir {coco} --karpathy_file {coco}/karpathy.json --max_completion_length 12")
    vocab_size = len(json.loads((coco / "bert" / "tokenizer.json").read_text())["model"]["vocab"])
    tokens = f"--tokenizer {coco}/bert --vocab_size {vocab_size} --max_caption_length 12"
    chain.run(f"captioning_{size}_mle", f"--image_size {SIZE} --encoder_init {coco}/vit.npz {DECODER} {tokens}")
    assert any("reward" in entry for entry in chain.run(f"captioning_{size}_cider"))
    chain.data = f"--images_dir {coco} --karpathy_file {coco}/karpathy.json"
    scores = chain.evaluate(f"captioning_{size}_cider")
    assert scores["split"] == "test"
    assert {"cider", "bleu_4", "rouge_l"} <= set(scores)
    assert len(json.loads((tmp_path / f"captioning_{size}_cider" / "eval" / "captions.json").read_text())) == 4


def test_a_chain_runs_on_two_processes_to_the_table(coco, tmp_path):
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> None:
        import os

        command = [
            sys.executable,
            "-m",
            "vision_rl.cli",
            *words,
            "--accelerate_config",
            "multi_gpu",
            "--num_processes",
            "2",
        ]
        subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=300)

    assert ACCELERATE
    data = f"{boxes_of(coco, 'instances')} --num_categories 10".split()
    sizes = f"--image_size {SIZE} --num_bins 32 --max_boxes 4 {ENCODER} {DECODER} --encoder_init {coco}/vit.npz"
    few = FEW.replace("gradient_accumulation_steps 2", "gradient_accumulation_steps 1").split()
    first = ("mle", "--config", "detection_objects365_mle", *sizes.split(), *data, *few)
    run(*first, "--output_dir", f"{tmp_path}/mle")
    run(
        "tune",
        "--config",
        "detection_map",
        "--model",
        f"{tmp_path}/mle",
        *data,
        *few,
        "--output_dir",
        f"{tmp_path}/map",
    )
    run("eval", "--model", f"{tmp_path}/map", *data, "--use_cpu", "true", "--shard_size", "3")
    scores = json.loads((tmp_path / "map" / "eval" / "metrics.json").read_text())
    assert scores["images"] == 4 and "map" in scores
