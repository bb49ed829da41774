"""Resuming: a run goes on from the newest whole checkpoint, or from the one that was named. Damage is told before training."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vision_rl.manifest import TRAINING_STATE, DamagedFolder, check_whole, read_manifest
from vision_rl.trainer.checkpoints import ASIDE, checkpoints_in, facts_of, take_name
from vision_rl.trainer.ranks import together


if TYPE_CHECKING:
    from vision_rl.trainer.vision_trainer import VisionTrainer


logger = logging.getLogger(__name__)

OF_OPTIMIZER = ("optim", "learning_rate", "encoder_learning_rate", "weight_decay")  # facts of a run


def folder_to_resume(trainer: "VisionTrainer", asked: str | bool | None) -> str | None:
    """Return the folder that `resume_from_checkpoint` means, once it is checked: the named one, or the newest whole one.

    Without an argument `args.resume_from_checkpoint` counts, which Trainer leaves to scripts.
    """
    if asked is None:
        asked = trainer.args.resume_from_checkpoint
    if str(asked).lower() in ("true", "false"):  # from a command line
        asked = str(asked).lower() == "true"
    if not asked:
        return None
    folder = newest_whole(trainer, Path(str(trainer.args.output_dir))) if asked is True else Path(str(asked))
    if asked is not True:
        check_resumable(trainer, folder)
    compare_runs(trainer, folder)
    return str(folder)


def newest_whole(trainer: "VisionTrainer", run: Path) -> Path:
    """The newest checkpoint of a run that can be resumed; those passed over are told with the reason.

    Raises:
        ValueError: if there is none.
    """
    with together(trainer.accelerator):
        if trainer.args.should_save:
            _finish_interrupted(run)
    candidates = broadcast_object_list([[path.name for path in reversed(checkpoints_in(run))]])[0]
    passed_over: list[str] = []
    for name in candidates:
        damage = _damage_on_any_rank(trainer, run / name)
        if damage is None:
            for told in passed_over:
                logger.warning("Resuming from %s. Passed over: %s", name, told)
            return run / name
        passed_over.append(damage)
    if not passed_over:
        raise ValueError(f"{run} has no checkpoint to resume from.")
    raise ValueError(f"{run} has no whole checkpoint to resume from: {' '.join(passed_over)}")


def check_resumable(trainer: "VisionTrainer", folder: Path) -> None:
    """Check that the checkpoint is whole and holds everything from which a run goes on.

    Raises:
        DamagedFolder: on all ranks, naming folder and file, and the newest whole checkpoint beside it.
    """
    damage = _damage_on_any_rank(trainer, folder)
    if damage is not None:
        raise DamagedFolder(f"{damage} {_way_back(trainer, folder)}")


def check_best(trainer: "VisionTrainer", folder: Path) -> None:
    """Check that the model of the best checkpoint is whole. Its optimizer is not needed.

    Raises:
        DamagedFolder: on all ranks.
    """
    damage = _damage_on_any_rank(trainer, folder, only_model=True)
    if damage is not None:
        raise DamagedFolder(
            f"The best model cannot be loaded: {damage} The model in memory is that of step "
            f"{trainer.state.global_step}. {_way_back(trainer, folder)}"
        )


def compare_runs(trainer: "VisionTrainer", folder: Path) -> None:
    """Warn where a resumed run is not the one that was interrupted.

    Raises:
        ValueError: if the place in a stream, or the state of the optimizer, does not fit the run.
    """
    then, now = read_manifest(folder), facts_of(trainer)
    changed = {name: (then[name], now[name]) for name in now if name in then and then[name] != now[name]}
    of_optimizer = [f"{name}={changed[name][0]!r}" for name in OF_OPTIMIZER if name in changed]
    if of_optimizer:
        told = (
            f"{folder} was written by a run with {', '.join(of_optimizer)}, but this run has "
            f"{', '.join(f'{name}={changed[name][1]!r}' for name in OF_OPTIMIZER if name in changed)}"
        )
        instead = "To train with the new options, start a new run with the checkpoint as `model`, without resume_from_checkpoint"
        if bool(then.get("weight_decay")) != bool(now["weight_decay"]):  # other groups of parameters
            raise ValueError(f"{told}: the state of its optimizer does not fit. {instead}.")
        logger.warning(
            "%s: a resumed run goes on with the optimizer, learning rates and schedule of the checkpoint. %s.",
            *(told, instead),
        )
    if "images_per_step" in changed:
        before, after = changed["images_per_step"]
        if now["train_rows"] is None:
            raise ValueError(
                f"{folder} was written by a run with {before} images per step, but this run has {after}, and the place in a "
                "stream is counted in steps. Keep per_device_train_batch_size x gradient_accumulation_steps x processes as "
                "it was, or start a new run with the checkpoint as `model`."
            )
        logger.warning(
            "%s was written by a run with %s images per step, but this run has %s: its steps, epochs and learning rates differ "
            "from those of the run that was interrupted. per_device_train_batch_size x gradient_accumulation_steps x "
            "processes should stay the same.",
            *(folder, before, after),
        )
    if "train_rows" in changed:
        before, after = changed["train_rows"]
        logger.warning(
            "%s was written by a run with %s rows, but this run has %s: their order differs.", folder, before, after
        )
    if "world_size" in changed and "images_per_step" not in changed:
        before, after = changed["world_size"]
        logger.warning(
            "%s was written by %s processes, but now there are %s: the run goes on with the same images per step, equal up to "
            "rounding; dropout draws other masks.",
            *(folder, before, after),
        )


def _damage_on_any_rank(trainer: "VisionTrainer", folder: Path, only_model: bool = False) -> str | None:
    """The damage of a checkpoint, found by the processes that save: the main one, or one on each node."""
    damage = None
    if trainer.args.should_save:
        try:
            content = check_whole(folder, without=TRAINING_STATE if only_model else ())
            if not only_model:
                _check_has_state(trainer, folder, content)
        except DamagedFolder as error:
            damage = str(error)
    if trainer.accelerator.num_processes == 1:
        return damage
    return next((told for told in gather_object([damage]) if told is not None), None)


def _check_has_state(trainer: "VisionTrainer", folder: Path, content: dict) -> None:
    names = set(content["files"])
    if content.get("save_only_model"):
        raise DamagedFolder(
            f"{folder} holds only a model (save_only_model) and no optimizer to go on with: pass it as `model` to a new run."
        )
    needed = [TRAINER_STATE_NAME]
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        needed += ["optimizer.pt", "scheduler.pt"]
    if content.get("world_size") == (ranks := trainer.args.world_size):
        needed += ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DamagedFolder(f"{folder} cannot be resumed here: it has no {', '.join(missing)}.")
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFolder(f"{folder} is damaged: {TRAINER_STATE_NAME} holds no state ({error}).") from None


def _way_back(trainer: "VisionTrainer", folder: Path) -> str:
    """Say which checkpoint beside a damaged one can be resumed."""
    for other in reversed(checkpoints_in(folder.parent)):
        if other.name != folder.name and _damage_on_any_rank(trainer, other) is None:
            return f"Go back to {other}: it is whole."
    return "None of the other checkpoints beside it is whole."


def _finish_interrupted(run: Path) -> None:
    """Finish a save that was interrupted between its manifest and its new name: such a save has lost nothing."""
    for left in run.glob(f"{ASIDE}{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            check_whole(left)
        except DamagedFolder:
            continue
        take_name(left, run / left.name.removeprefix(ASIDE))
