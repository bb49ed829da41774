"""Starts `train.py` under a launcher and reads the records of its ranks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


TRAIN = Path(__file__).with_name("train.py")
PYTHON = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]  # 0: a free port
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def launch(launcher: list[str], calls: dict[str, dict], folder: Path, timeout: int = 240) -> dict[str, list[dict]]:
    """Run `train(**call)` for each of `calls` on every rank, without a GPU; leaves no process behind.

    Returns:
        For each name the records of its ranks, in order. If the launch fails, or takes longer than `timeout` seconds,
        this raises with the end of its output.
    """
    folder.mkdir(exist_ok=True)
    (folder / "calls.json").write_text(json.dumps(calls))
    code, output = start(launcher, TRAIN.name, [str(folder / "calls.json"), str(folder)], folder, timeout)
    assert code == 0, f"{' '.join(launcher)} ended with {code}:\n{output[-6000:]}"
    return {name: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}.*.json"))] for name in calls}


def start(
    launcher: list[str], script: str, arguments: list[str], folder: Path, timeout: int = 240
) -> tuple[int | None, str]:
    """Run a script of this folder under a launcher, without a GPU; leaves no process behind.

    Returns:
        The exit status, or `None` after `timeout` seconds; and what the script printed.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [*launcher, str(TRAIN.with_name(script)), *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # not SIGKILL, which torchrun could not pass on to its ranks
                process.wait(60)
        output.seek(0)
        return code, output.read()
