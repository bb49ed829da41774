"""Trainings that are kept, and know with which settings they were made."""

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from transformers import Trainer, TrainerCallback

from vision_rl.trainer.checkpoints import checkpoints_in


# A constant rate after the warm-up, as in the paper, would leave every row with the noise of its last steps.
SHORT_TRAINING = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
SPENT = ("steps", "seconds")


class Clock(TrainerCallback):
    """Writes into each entry of the log how long the run has taken, also before it was interrupted.

    `seconds` are the clock's, `cpu_seconds` those of this process, which do not grow where others use the cores too.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        before = state.log_history[-1] if state.log_history else {}
        self._began = {name: now - before.get(name, 0.0) for name, now in self._now().items()}

    def on_log(self, args, state, control, **kwargs):
        spent = {name: round(now - self._began[name], 2) for name, now in self._now().items()}
        state.log_history[-1].update(spent)

    def _now(self) -> dict[str, float]:
        return {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}


def is_trained(folder: Path, settings: Mapping) -> bool:
    """Whether the folder has a finished model of these settings; see `record`.

    Raises:
        ValueError: if its model, finished or not, is one of other settings, with those that differ.
    """
    if not (folder / "run.json").exists():
        return False
    run = json.loads((folder / "run.json").read_text())
    recorded = run.get("settings", {})
    wanted = json.loads(json.dumps(settings))  # as it would be read back
    different = [
        f"{name} was {recorded.get(name, 'not recorded')!r} and is {wanted.get(name, 'not given')!r}"
        for name in {**recorded, **wanted}
        if name not in recorded or name not in wanted or recorded[name] != wanted[name]
    ]
    if different:
        raise ValueError(
            f"{folder} has a model of other settings: {'; '.join(different)}. Choose another work_dir, or remove the folder."
        )
    return "steps" in run


def train_and_save(trainer: Trainer, settings: Mapping) -> None:
    """Train, from the last checkpoint if it was interrupted, and save, with a record of it."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"settings": settings}, indent=1))
    trainer.add_callback(Clock())
    trainer.train(resume_from_checkpoint=bool(checkpoints_in(folder)))
    trainer.save_model()
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    record(trainer, settings)


def record(trainer: Trainer, settings: Mapping) -> None:
    """Write `run.json` beside a model: with which settings it was trained, in how many steps and seconds.

    The steps are those to the best model if that is loaded.
    """
    steps = trainer.state.best_global_step if trainer.args.load_best_model_at_end else trainer.state.global_step
    end = next(log for log in reversed(trainer.state.log_history) if "train_runtime" in log)
    run = {"steps": steps, "seconds": round(end.get("seconds", end["train_runtime"]))}
    run |= {"cpu_seconds": round(end["cpu_seconds"])} if "cpu_seconds" in end else {}
    run |= {"commit": commit(), "settings": settings}
    (Path(trainer.args.output_dir) / "run.json").write_text(json.dumps(run, indent=1))


def commit() -> str:
    """The commit of this code, with a + where files differ from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(described, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def weights_of(folder: Path) -> str:
    """What tells the weights of a saved model from others, for the settings of what is trained from it."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cost(folder: Path) -> dict[str, int]:
    """Steps of the training that made a model, and its seconds; of a checkpoint that comes along 0.

    They are those of its process, which do not grow where others use the cores too, where they were recorded.
    """
    run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    return {"steps": run.get("steps", 0), "seconds": run.get("cpu_seconds", run.get("seconds", 0))}
