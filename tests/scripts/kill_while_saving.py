"""Kills trainings with SIGKILL at random moments of a save, resumes them, and compares with an undisturbed run.

    OMP_NUM_THREADS=1 python tests/scripts/kill_while_saving.py --kills 100 --folder /tmp/kills

Each training is a fork of this process, which has imported everything, so that one kill takes a second or two. Prints
one JSON object: how many kills fell into a save, what they left on the disk, and which resumed runs did not end bit
for bit like the undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))

from peft import LoraConfig
from scripts.train import digest, make_trainer


STEPS = 4
KINDS = {
    "mle": {"kind": "mle", "decoder": "gpt2"},  # has dropout, so random states matter
    "reward": {"kind": "reward", "decoder": "ours"},
    "lora": {"kind": "mle", "peft_config": LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"])},
}


def train(kind: str, folder: Path, resume: bool, events: int) -> None:
    """Train, report when a save begins and ends, and write `result.json`."""
    trainer = make_trainer(
        folder=folder, rows=16, max_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=1, **KINDS[kind]
    )
    save = trainer._save_checkpoint

    def told_save(*args):
        os.write(events, b"s")
        save(*args)
        os.write(events, b"e")

    trainer._save_checkpoint = told_save
    trainer.train(resume_from_checkpoint=resume)
    moments = torch.nn.ParameterList(
        value.float() for state in trainer.optimizer.state.values() for value in state.values()
    )
    logs = [
        {key: value for key, value in log.items() if not key.startswith(("step_time", "timing/"))}
        for log in trainer.state.log_history
        if "loss" in log
    ]
    result = {"weights": digest(trainer.model), "optimizer": digest(moments), "logs": logs}
    (folder / "result.json").write_text(json.dumps(result))


def forked(kind: str, folder: Path, resume: bool) -> tuple[int, int]:
    """The process id of a training, and the pipe from which to read its events."""
    events, written = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(events)
        with open(folder.with_suffix(".txt"), "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = 1
            try:
                train(kind, folder, resume, written)
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
    os.close(written)
    return process, events


def finished(kind: str, folder: Path, resume: bool) -> tuple[dict, list[float]]:
    """The result of an undisturbed training, and how long its saves took."""
    process, events = forked(kind, folder, resume)
    begun, seconds = 0.0, []
    while event := os.read(events, 1):
        if event == b"s":
            begun = time.monotonic()
        else:
            seconds.append(time.monotonic() - begun)
    os.close(events)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"{kind} ended with {status}:\n{folder.with_suffix('.txt').read_text()[-3000:]}")
    return json.loads((folder / "result.json").read_text()), seconds


def killed(kind: str, folder: Path, save: int, delay: float) -> bool:
    """Kill a training `delay` seconds after its save number `save` began, and return whether that save had not ended."""
    process, events = forked(kind, folder, resume=False)
    seen = ""
    while seen.count("s") < save:
        seen += os.read(events, 1).decode()
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    while event := os.read(events, 1):
        seen += event.decode()
    os.close(events)
    return seen.count("e") < seen.count("s")


def left(folder: Path) -> str:
    """What the kill has left of the save, in words."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    aside = [name for name in names if name.startswith("_saving-")]
    if not aside:
        return "a discarded one" if any(name.startswith("_discarded-") for name in names) else "no part"
    return "a whole one, not renamed" if (folder / aside[0] / "manifest.json").exists() else "a part"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    whole, longest = {}, {}
    for kind in KINDS:
        whole[kind], seconds = finished(kind, args.folder / kind, resume=False)
        longest[kind] = max(seconds)
    rng, count, tries, found, wrong = random.Random(args.seed), 0, 0, Counter(), []
    while count < args.kills:
        kind, tries = rng.choice(list(KINDS)), tries + 1
        folder = args.folder / f"try-{tries}"
        inside = killed(kind, folder, rng.randint(1, STEPS), rng.uniform(0, longest[kind]))
        if not inside:
            shutil.rmtree(folder)
            continue
        count += 1
        found[left(folder)] += 1
        resumable = any(folder.glob("checkpoint-*")) or left(folder) == "a whole one, not renamed"
        result, _ = finished(kind, folder, resume=resumable)
        if result != whole[kind]:
            wrong.append(tries)
        else:
            shutil.rmtree(folder)
    print(json.dumps({"kills while saving": count, "left": dict(found), "resumed otherwise": wrong, "tries": tries}))


if __name__ == "__main__":
    main()
