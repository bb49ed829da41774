"""Starts `train.py` under a launcher and reads what its ranks wrote."""

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
    """Run `train(**call)` for each of `calls` on every rank, without a GPU.

    Returns:
        For each name the records of its ranks, in order. Raises with the end of the output if the launch fails or
        takes longer than `timeout` seconds, and leaves no process behind.
    """
    folder.mkdir(exist_ok=True)
    (folder / "calls.json").write_text(json.dumps(calls))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [*launcher, str(TRAIN), str(folder / "calls.json"), str(folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"no end after {timeout} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # not SIGKILL: torchrun's ranks have sessions of their own
                process.wait(60)
        output.seek(0)
        assert code == 0, f"{' '.join(launcher)} ended with {code}:\n{output.read()[-6000:]}"
    return {name: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}.*.json"))] for name in calls}
