"""The recipes in the package: read by the scripts that they are for, with the sizes and schedules of the paper."""

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from trl import TrlParser

from vision_rl.models import vit_encoder
from vision_rl.models.uvim import UViMModel
from vision_rl.models.uvim.conversion import vit_entries
from vision_rl.tasks.panoptic.segments import rgb_from_ids


RECIPES = files("vision_rl") / "recipes"

# Images a step, learning rate and the encoder's, weight decay, steps, of these warm-up. UViM's own configs, Tables 4 to 7.
PUBLISHED = {
    "panoptic_stage1": (1024, 4e-4, None, 4e-5, 111_515, 4000),
    "panoptic_mle": (512, 1e-3, 1e-4, 1e-6, 44_606, 4000),
    "panoptic_tuning": (128, 1e-6, None, 0, 30_000, 4000),
    "colorization_stage1": (1024, 4e-4, None, 4e-5, 124_714, 4000),
    "colorization_mle": (512, 1e-3, 1e-4, 1e-6, 124_714, 4000),
    "colorization_tuning": (512, 3e-7, None, 0, 1000, 0),
    "detection_mle": (256, 1e-3, None, 5e-5, 400_000, 20_000),
    "detection_tuning": (256, 1e-6, None, 0, 100_000, 1000),
    "captioning_mle": (256, 3e-4, 3e-5, 5e-6, 5000, 1000),
    "captioning_tuning": (256, 1e-5, 1e-6, 0, 10_000, 1000),
}


@pytest.fixture
def read(example):
    """A recipe with options added to it: the script that its comment names, and what its parser makes of them."""

    def parse(name: str, *options: str) -> tuple:
        path = RECIPES / f"{name}.yaml"
        script, config = re.search(r"python examples/(\w+)\.py --config src/(\S+)", path.read_text()).groups()
        assert config == f"vision_rl/recipes/{name}.yaml"
        module = example(script)
        *arguments, _ = get_type_hints(module.main).values()
        parser = TrlParser(arguments)
        parser.set_defaults(**module.DEFAULTS)
        return module, *parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true", *options])

    return parse


def test_the_package_has_a_recipe_for_each_step_of_each_task():
    assert sorted(path.name for path in RECIPES.iterdir()) == sorted(f"{name}.yaml" for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_batch_the_rates_and_the_steps_that_were_published(read, name):
    *_, args = read(name)
    images = args.per_device_train_batch_size * args.gradient_accumulation_steps
    rates = (args.learning_rate, args.encoder_learning_rate, args.weight_decay)
    assert (images, *rates, args.max_steps, args.warmup_steps) == PUBLISHED[name]
    assert args.optim == "big_vision_adafactor" and not args.bf16
    assert args.max_grad_norm == (1.0 if name.endswith("stage1") else 0.0)
    assert args.lr_scheduler_type == ("constant_with_warmup" if name.endswith("tuning") else "cosine")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("tuning")])
def test_tuning_learns_from_one_sample_and_the_others_are_its_baseline(read, name):
    *_, args = read(name)
    assert (args.num_generations, args.baseline) == (8 if name.startswith("captioning") else 2, "first")
    assert args.temperature == 1 and args.beta == 0 and args.loss_reduction == "sum"


@pytest.mark.parametrize("task", ["panoptic", "colorization"])
def test_tuning_starts_from_the_model_of_mle_and_that_has_the_stage_1_of_its_recipe(read, task):
    *_, stage1_args = read(f"{task}_stage1")
    _, model_args, _, mle_args = read(f"{task}_mle")
    assert model_args.stage1 == stage1_args.output_dir
    assert read(f"{task}_tuning")[1].model == mle_args.output_dir


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("task", "parameters"), [("panoptic", 223_593_984), ("colorization", 132_701_184)])
def test_the_models_have_the_sizes_of_the_published_ones(read, task, parameters, tmp_path):
    categories = [{"id": i, "name": str(i), "isthing": int(i <= 80)} for i in range(1, 134)]  # as many as COCO's
    (tmp_path / "panoptic.json").write_text(json.dumps({"categories": categories}))
    module, args, data_args, _ = read(f"{task}_stage1", "--annotation_file", f"{tmp_path}/panoptic.json")
    processor, _ = module.dense_task(args, data_args)
    with torch.device("meta"):
        stage1 = module.stage1_model(args, processor)
    assert num_parameters(stage1) == parameters
    assert stage1.codebook.dictionary.shape == (4096, 768)
    assert (stage1.config.code_dropout, stage1.config.codebook_momentum) == ("random", 0.995)
    assert (processor.crop_area, processor.flip) == ([0.05, 1.0], True)

    module, args, *_ = read(f"{task}_mle")
    assert args.encoder.startswith("L_16-i21k")
    with torch.device("meta"):
        model = module.code_writer(replace(args, encoder=None), stage1)
    assert num_parameters(model) == 715_729_921


# --- the panoptic recipes run, made small ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> list[str]:
    """Pictures of two segments in COCO's form, with a category each, and the options that name them."""
    categories = [{"id": 5, "name": "cat", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}]
    segments_info = [{"id": 1, "category_id": 5}, {"id": 70_000, "category_id": 90}]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for index in range(20):
        ids = np.full((40, 50), 70_000)
        ids[index : index + 20, 5:40] = 1
        Image.fromarray(rgb_from_ids(ids)).save(tmp_path / f"{index}.png")
        Image.fromarray(np.uint8(ids % 251)).save(tmp_path / f"{index}.jpg")
        content["images"].append({"id": index, "file_name": f"{index}.jpg"})
        annotation = {"image_id": index, "file_name": f"{index}.png", "segments_info": segments_info}
        content["annotations"].append(annotation)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return f"--images_dir {tmp_path} --masks_dir {tmp_path} --annotation_file {tmp_path}/panoptic.json".split()


SMALL = "--hidden_size 32 --num_encoder_layers 1 --num_decoder_layers 1 --num_attention_heads 2"
FEW = "--max_steps 2 --warmup_steps 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2"
FEW += " --eval_strategy no --save_strategy no --report_to none --logging_steps 1"


def big_vision_vit(path, image_size: int) -> torch.Tensor:
    """Write a small ViT as big_vision does; returns the weight of its patches."""
    vit = vit_encoder(image_size, 16, 32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    arrays = {
        entry.name: entry.tensor.detach().permute(*np.argsort(entry.axes)).reshape(entry.shape).numpy()
        for entry in vit_entries(vit, "Transformer", "embedding", "pos_embedding")
    }
    np.savez(path, **arrays)
    return vit.embeddings.patch_embedding.weight


def test_the_panoptic_recipes_train_both_stages_from_a_pretrained_vit_and_tune(read, folder, tmp_path):
    few, stage1, mle, pq = FEW.split(), f"{tmp_path}/stage1", f"{tmp_path}/mle", f"{tmp_path}/pq"
    codes = ["--image_size", "32", "--num_codes", "8", "--code_len", "4"]
    module, *args = read("panoptic_stage1", *codes, *SMALL.split(), *few, *folder, "--output_dir", stage1)
    module.main(*args)

    patches = big_vision_vit(tmp_path / "vit.npz", image_size=64)
    options = ["--stage1", stage1, "--encoder", f"{tmp_path}/vit.npz", *SMALL.split()]
    module, *args = read("panoptic_mle", *options, *few, *folder, "--output_dir", mle)
    start = module.code_writer(args[0], UViMModel.from_pretrained(stage1)).encoder
    assert torch.equal(start.embeddings.patch_embedding.weight, patches)
    assert (start.config.num_hidden_layers, start.config.image_size) == (2, 32)  # positions come to stage I's size
    module.main(*args)

    module, *args = read("panoptic_tuning", "--model", mle, *few, *folder, "--output_dir", pq)
    logs = [entry for entry in module.main(*args).state.log_history if "reward" in entry]
    assert len(logs) == 2 and all(math.isfinite(entry["loss"]) for entry in logs)
    assert (tmp_path / "pq" / "stage1" / "model.safetensors").exists()
