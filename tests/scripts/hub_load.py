"""Loads by name what `hub_push.py` has pushed, in a process and a folder that know nothing else about it.

HF_ENDPOINT=... python tests/scripts/hub_load.py record.json loaded.json
"""

import json
import os
import re
import sys
from pathlib import Path


CARDS = ("boxes", "boxes-mle", "captions", "colours", "colours-stage1", "read-mle", "read-lora", "trocr")
PICTURE = "image.jpg"


def run_the_cards() -> dict[str, list[str]]:
    """Run the first block of each model's card as a reader would, and return the lines of each block."""
    from huggingface_hub import ModelCard

    ran = {}
    for name in CARDS:
        block = re.search(r"```python\n(.*?)```", ModelCard.load(f"user/{name}").text, re.S)[1]
        exec(compile(block, name, "exec"), {"__name__": name})
        ran[name] = block.splitlines()
    return ran


def load_all(record: dict) -> dict:
    import datasets
    import evaluate
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModel, AutoProcessor, VisionEncoderDecoderModel

    import vision_rl
    from vision_rl.manifest import check_whole
    from vision_rl.tasks.captioning import CiderReward

    answers = {}
    for name in record["answers"]:
        repo, _, revision = name.partition("@")
        task = "ocr" if repo == "user/trocr" else None
        pipe = vision_rl.pipeline(repo, task, use_cpu=True, revision=revision or None)
        answers[name] = pipe(datasets.load_dataset("user/words", split="train")[0]["image"])
    reward = CiderReward.from_pretrained("user/captions")
    module = evaluate.load("user/cider")
    checkpoint = Path(snapshot_download("user/captions"), "last-checkpoint")
    return {
        "answers": answers,
        "processors": {name: type(AutoProcessor.from_pretrained(f"user/{name}")).__name__ for name in CARDS},
        "decoder": type(VisionEncoderDecoderModel.from_pretrained("user/boxes").decoder).__name__,
        "stage I": type(AutoModel.from_pretrained("user/colours", subfolder="stage1")).__name__,
        "config at a tag": AutoConfig.from_pretrained("user/boxes-mle", revision="v1").model_type,
        "reward": reward(["ab"], [["ab", "ba"]], completion_ids=[[2, 3, 1]]),
        "rows": {split: len(rows) for split, rows in datasets.load_dataset("user/scenes").items()},
        "module": module.compute(predictions=["a dog"], references=[["a dog"]])["bleu_1"],
        "checkpoint": check_whole(checkpoint)["global_step"],
    }


if __name__ == "__main__":
    given, left = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    left.parent.mkdir(exist_ok=True)
    os.chdir(left.parent)
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(PICTURE)
    cards = run_the_cards()
    left.write_text(json.dumps({"cards": cards, **load_all(json.loads(given.read_text()))}))
