"""`training.json` in the output folder: what was trained from what, how, and with which versions. A report reads it."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vision_rl.environment import environment
from vision_rl.recording import shown_command
from vision_rl.trainer.model_card import settings


logger = logging.getLogger(__name__)

FILE = "training.json"


class RunRecord(TrainerCallback):
    """Writes the record when a training begins, and how long it took when it ends; the main process does.

    Args:
        facts: what only the trainer knows, in JSON's types.
    """

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts
        self.record: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()
        self.record = {
            **self.facts,
            "command": shown_command(sys.argv),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "resumed_at_step": state.global_step,
            "processes": args.world_size,
            "settings": settings(args),
            "versions": environment(),
        }
        self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.record |= {"steps": state.global_step, "seconds": round(time.perf_counter() - self.began, 1)}
        self._write(args, state)

    def _write(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FILE).write_text(json.dumps(self.record, indent=1) + "\n")
        except OSError as error:  # no reason to lose a run
            logger.warning("The record of this run could not be written: %s", error)
