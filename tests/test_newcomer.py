"""One page of the documentation, step by step: a folder, a reward, the Hub, and another machine that knows a name."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from test_docs import DOCS, blocks


pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the installed package")

PAGE = "tutorials/folder-to-hub.md"
ELSEWHERE = "vision-rl predict"  # from this block on the page is on another machine: another folder, an empty cache


def run(block: tuple[str, str], folder: Path, environment: dict[str, str]) -> None:
    """Run a block as a reader would, in a process of its own."""
    language, code = block
    if code.startswith("# my_rewards.py"):
        (folder / "my_rewards.py").write_text(code)
    commands = [[sys.executable, "-c", code]]
    if language == "bash":
        lines = code.replace("\\\n", " ").splitlines()
        commands = [
            [sys.executable, "-m", "vision_rl.cli", *expanded(line, folder)]
            for line in lines
            if line.startswith("vision-rl")
        ]
    for command in commands:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def expanded(line: str, folder: Path) -> list[str]:
    """The words of a command; file names with a star are expanded as by a shell."""
    words = shlex.split(line)[1:]
    return [str(path) for word in words for path in (sorted(folder.glob(word)) if "*" in word else [word])]


def test_the_page_leads_from_a_folder_and_a_reward_to_a_model_on_the_hub_that_answers_elsewhere(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "here" / "elsewhere"
    elsewhere.mkdir(parents=True)
    with LoopbackHub() as hub:
        machine = {name: str(tmp_path / name) for name in ("first", "second")}  # their caches
        code = blocks(PAGE, "python|bash")
        change = next(place for place, block in enumerate(code) if ELSEWHERE in block[1])
        for place, block in enumerate(code):
            folder, cache = (here, machine["first"]) if place < change else (elsewhere, machine["second"])
            run(block, folder, hub.environment(cache) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
        files = hub.files("user/meters")
    assert {"model.safetensors", "processor_config.json", "README.md"} <= set(files)
    assert "close_reading" in files["README.md"].decode()
    answers = json.loads((elsewhere / "readings" / "texts.json").read_text())
    assert len(answers) == 10
