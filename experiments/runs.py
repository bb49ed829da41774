"""Trainings that are kept, and know with which settings they were made."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint


# A constant rate after the warm-up, as in the paper, would leave every row with the noise of its last steps.
SHORT_TRAINING = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
SPENT = ("steps", "seconds")


def is_trained(folder: Path, settings: Mapping) -> bool:
    """Whether the folder has a finished model of these settings; see `record`.

    Raises:
        ValueError: if its model was trained with other settings, with those that differ.
    """
    if not (folder / "run.json").exists():
        return False
    recorded = json.loads((folder / "run.json").read_text()).get("settings", {})
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
    return True


def train_and_save(trainer: Trainer, settings: Mapping) -> None:
    """Train, from the last checkpoint if it was interrupted, and save, with a record of it."""
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    trainer.save_model()
    record(trainer, settings)


def record(trainer: Trainer, settings: Mapping) -> None:
    """Write `run.json` beside a model: with which settings it was trained, in how many steps and seconds.

    The steps are those to the best model if that is loaded.
    """
    steps = trainer.state.best_global_step if trainer.args.load_best_model_at_end else trainer.state.global_step
    seconds = next(log["train_runtime"] for log in reversed(trainer.state.log_history) if "train_runtime" in log)
    run = {"steps": steps, "seconds": round(seconds), "settings": settings}
    (Path(trainer.args.output_dir) / "run.json").write_text(json.dumps(run, indent=1))


def weights_of(folder: Path) -> str:
    """What tells the weights of a saved model from others, for the settings of what is trained from it."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cost(folder: Path) -> dict[str, int]:
    """Steps and seconds of the training that made a model; of a checkpoint 0."""
    run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    return {name: run.get(name, 0) for name in SPENT}
