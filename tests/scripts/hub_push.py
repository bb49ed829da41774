"""Trains models and pushes them. `test_hub.py` then checks the Hub, and loads from it elsewhere.

HF_ENDPOINT=... python tests/scripts/hub_push.py record.json
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[1]))

import huggingface_hub
from tiny import SIZE, image_processor, share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from transformers import PreTrainedTokenizerFast, TrOCRProcessor

import vision_rl
from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.cli import main
from vision_rl.tasks.captioning import CaptioningProcessor, CiderReward, DocumentFrequency, coco_captions
from vision_rl.tasks.ocr import character_error_rate


record: dict[str, Any] = {"answers": {}}
FEW: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
    "learning_rate": 1e-2,
    "max_completion_length": 6,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


KINDS = datasets.ClassLabel(names=["cup", "plate"])


def word_rows(count: int) -> datasets.Dataset:
    rows = text_dataset(count)
    return rows.add_column("captions", [[text, text[::-1]] for text in rows["text"]])


def box_rows(count: int) -> datasets.Dataset:
    """Pictures with one box each, whose class has a name."""
    boxes = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(KINDS)}
    objects = [{"bbox": [[4, 4, 10 + row, 12]], "category": [row % 2]} for row in range(count)]
    features = datasets.Features({"image": datasets.Image(), "objects": boxes})
    return datasets.Dataset.from_dict({"image": tiny_images(count), "objects": objects}, features=features)


def finish(trainer, name: str) -> None:
    """End a run: record the model's answer to a picture, and remove its folder."""
    picture = [{"image": word_rows(1)[0]["image"]}]
    record["answers"][name] = trainer.predict(picture).predictions[0]
    shutil.rmtree(trainer.args.output_dir)  # so only what was pushed can be loaded later


def push_by_trainers() -> None:
    rows = datasets.DatasetDict(train=word_rows(8), validation=word_rows(4))
    rows.push_to_hub("user/words")
    train, validation = (datasets.load_dataset("user/words", split=split) for split in ("train", "validation"))

    def given(processor, **kwargs) -> dict:
        return {"train_dataset": train, "eval_dataset": validation, "processing_class": processor, **kwargs}

    # step 1, pushed at the end of the run
    mle = VisionMLETrainer(
        tiny_model(sharp=1.0),
        VisionMLEConfig("runs/read-mle", push_to_hub=True, hub_strategy="end", hub_token="hf_loopback", **FEW),
        **given(text_processor(), compute_metrics=character_error_rate),
    )
    mle.train()
    mle.push_to_hub(dataset_name="user/words")
    huggingface_hub.create_tag("user/read-mle", tag="v1")
    record["saved arguments"] = torch.load("runs/read-mle/training_args.bin", weights_only=False).hub_token
    finish(mle, "user/read-mle")

    # step 2 starts from there and goes to a branch that is not there yet; then once more with adapters
    tuned = VisionRewardTrainer(
        "user/read-mle",
        share_of_a,
        VisionRewardConfig("runs/read", push_to_hub=True, hub_model_id="user/read-mle", hub_revision="tuned", **FEW),
        **given(None, compute_metrics=character_error_rate),
    )
    tuned.train()
    tuned.push_to_hub(dataset_name="user/words")
    finish(tuned, "user/read-mle@tuned")
    adapted = VisionMLETrainer(
        "user/read-mle",
        VisionMLEConfig("runs/read-lora", push_to_hub=True, hub_strategy="every_save", save_steps=1, **FEW),
        **given(None, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=2)),
    )
    adapted.train()
    adapted._finish_current_push()
    record["adapter before the end"] = huggingface_hub.list_repo_files("user/read-lora")
    adapted.push_to_hub()
    finish(adapted, "user/read-lora")

    # a reward with files of its own; every checkpoint is pushed, and one is there to resume from
    processor = CaptioningProcessor(image_processor(), text_processor().tokenizer, 0, max_caption_length=6)
    frequency = DocumentFrequency.from_references(list(train["captions"]), append_eos=True)
    tuned = VisionRewardTrainer(
        tiny_model(sharp=1.0),
        [CiderReward(frequency, eos_token_id=1), share_of_a],
        VisionRewardConfig(
            "runs/captions",
            push_to_hub=True,
            hub_strategy="checkpoint",
            hub_always_push=True,
            save_steps=1,
            save_total_limit=1,
            reward_weights=[1.0, 0.5],
            **FEW,
        ),
        **given(processor, compute_metrics=coco_captions),
    )
    tuned.train()
    tuned._finish_current_push()
    huggingface_hub.create_tag("user/captions", tag="before-the-end")
    tuned.push_to_hub(dataset_name="user/words")
    finish(tuned, "user/captions")

    # a processor of transformers
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text_processor().tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    foreign = VisionMLETrainer(
        tiny_model("trocr", sharp=1.0),
        VisionMLEConfig("runs/trocr", push_to_hub=True, hub_strategy="end", **FEW),
        **given(TrOCRProcessor(image_processor(), tokenizer)),
    )
    foreign.train()
    foreign.push_to_hub()
    finish(foreign, "user/trocr")


SHORT = "--max_steps 1 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true --save_strategy no"
ENCODER = "--encoder_hidden_size 32 --encoder_layers 1 --encoder_heads 2 --encoder_mlp_size 64"
DECODER = "--decoder_hidden_size 32 --decoder_layers 1 --decoder_heads 2 --decoder_mlp_size 64"
STAGE1 = "--patch_size 8 --hidden_size 32 --encoder_layers 1 --decoder_layers 1 --heads 2 --mlp_size 64"


def command(line: str) -> None:
    assert main(line.split()) == 0, line


def push_by_commands() -> None:
    """Commands that get everything by its name on the Hub. No earlier run is in this folder."""

    def pushed(name: str) -> str:
        return f"{SHORT} --push_to_hub true --hub_model_id user/{name} --output_dir runs/{name}"

    datasets.DatasetDict(train=box_rows(8), validation=box_rows(4)).push_to_hub("user/boxes-raw", private=True)
    command("prepare --task detection --dataset_name user/boxes-raw --output_dir rows --push_to_hub user/scenes")
    shutil.rmtree("rows")
    rows = "--dataset_name user/scenes"
    tiny_model().encoder.push_to_hub("user/vit")
    sizes = f"--image_size 32 --encoder_init user/vit {DECODER}"
    command(f"mle --task detection {rows} --num_bins 20 --max_boxes 3 {sizes} {pushed('boxes-mle')}")
    shutil.rmtree("runs")
    huggingface_hub.create_tag("user/boxes-mle", tag="v1")
    of_tag = "--model user/boxes-mle --model_revision v1"
    command(f"tune {of_tag} {rows} --reward recall --eval_strategy steps {pushed('boxes')}")
    shutil.rmtree("runs")
    for _ in range(2):  # the second run reuses the answers of the first
        command(f"eval --model user/boxes {rows} --use_cpu true --batch_size 4")
    record["evaluated"] = json.loads(Path("runs/user--boxes/eval/metrics.json").read_text())
    Image.new("RGB", (40, 30), "teal").save("picture.png")
    command("predict --model user/boxes --images picture.png --use_cpu true")
    record["predicted"] = sorted(path.name for path in Path("predictions").iterdir())
    command(f"tune --dry_run true {of_tag} {rows} --reward recall --report_to none --use_cpu true")

    codes = f"--task colorization {rows}"
    command(f"stage1 {codes} --num_codes 16 --code_len 4 --image_size {SIZE} {STAGE1} {pushed('colours-stage1')}")
    shutil.rmtree("runs")
    command(f"mle {codes} --stage1 user/colours-stage1 {ENCODER} {DECODER} {pushed('colours-mle')}")
    shutil.rmtree("runs")
    command(f"tune {codes} --model user/colours-mle --reward fidelity {pushed('colours')}")
    shutil.rmtree("runs")


def push_a_module() -> None:
    huggingface_hub.create_repo("user/cider", repo_type="space", space_sdk="gradio")
    huggingface_hub.upload_folder(
        repo_id="user/cider",
        repo_type="space",
        folder_path=vision_rl.metric_path("cider"),
        ignore_patterns="__pycache__/*",
    )


if __name__ == "__main__":
    os.chdir(Path(sys.argv[1]).parent)
    push_by_trainers()
    push_by_commands()
    push_a_module()
    Path(sys.argv[1]).write_text(json.dumps(record))
