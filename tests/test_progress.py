"""The progress line in a terminal: what it says, that it stays out of logs, and that an error removes it."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.trainer.progress import ProgressLine, said_of, told


pytestmark = pytest.mark.usefixtures("one_thread")


def tuner(folder, reward=share_of_a, **options) -> VisionRewardTrainer:
    args = VisionRewardConfig(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        max_completion_length=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        **options,
    )
    return VisionRewardTrainer(
        tiny_model(sharp=1.0), reward, args, text_dataset(), text_dataset(6), processing_class=text_processor()
    )


def in_terminal(trainer: VisionRewardTrainer) -> io.StringIO:
    """Sends the trainer's line to a terminal of 120 columns, and returns what is written there."""
    screen = io.StringIO()
    line = ProgressLine(Console(file=screen, force_terminal=True, width=120))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(line)
    trainer._progress = line
    return screen


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_line_has_steps_reward_evaluation_and_the_time_left(tmp_path):
    trainer = tuner(tmp_path, eval_strategy="steps", eval_steps=2)
    screen = in_terminal(trainer)
    trainer.train()
    lines = [line for line in re.split(r"[\r\n]+", plain(screen.getvalue())) if line.strip()]
    last = [line for line in lines if "4/4" in line][-1]
    assert re.search(r"4/4 .* reward [\d.]+ · eval_reward [\d.]+ +00:00 left", last)
    assert len([line for line in lines if re.match(r"step [24]: reward ", line)]) == 2
    assert "{" not in plain(screen.getvalue())  # no dict of all metrics


def test_an_error_leaves_the_terminal_as_it_was(tmp_path):
    def broken(completions, **kwargs):
        raise RuntimeError("no reward today")

    trainer = tuner(tmp_path, broken)
    screen, before = in_terminal(trainer), (sys.stdout, sys.stderr)
    with pytest.raises(RuntimeError, match="no reward today"):
        trainer.train()
    assert (sys.stdout, sys.stderr) == before
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_an_evaluation_by_itself_has_a_line_while_it_runs(tmp_path):
    trainer = tuner(tmp_path)
    screen, before = in_terminal(trainer), sys.stdout
    trainer.evaluate()
    assert "2/2" in plain(screen.getvalue()) and sys.stdout is before
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_without_a_terminal_the_log_is_trainers_own(tmp_path, capsys):
    callbacks = [type(each) for each in tuner(tmp_path).callback_handler.callbacks]
    assert ProgressCallback in callbacks and ProgressLine not in callbacks
    quiet = [type(each) for each in tuner(tmp_path, disable_tqdm=True).callback_handler.callbacks]
    assert PrinterCallback in quiet and ProgressLine not in quiet


def test_what_is_watched_is_what_the_line_tells():
    log = {
        "loss": 2.0,
        "reward": 0.51234,
        "eval_runtime": 1.0,
        "eval_map": 0.3,
        "eval_reward": 0.9,
        "eval_rewards/a/mean": 3,
    }
    assert said_of({"loss": 2.0}) == "loss 2"
    assert said_of(log) == "reward 0.5123 · eval_reward 0.9" and said_of(log, "map") == "reward 0.5123 · eval_map 0.3"
    args = VisionRewardConfig("unused", metric_for_best_model="map", use_cpu=True)
    assert told(log, args) == ["eval_map", "eval_reward"]


SCRIPT = """
import sys, tempfile
sys.path.insert(0, {tests!r})
from test_progress import tuner
tuner(tempfile.mkdtemp()).train()
print("after it")
"""


def test_in_a_real_terminal_trainers_bar_is_replaced_and_prints_stand_above_the_line():
    """Runs in a process whose output is a terminal."""
    mine, theirs = pty.openpty()
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(mine, 4096):
            shown += part
    except OSError:  # Linux's error when the other side is closed
        pass
    os.close(mine)
    text = plain(shown.decode(errors="replace"))
    assert process.wait() == 0, text
    assert re.search(r"4/4 .* reward [\d.]+", text) and "it/s" not in text.partition("Loading")[0]
    assert text.rstrip().endswith("after it")
