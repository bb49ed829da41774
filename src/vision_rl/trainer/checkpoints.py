"""Checkpoints that are whole or not there: written aside, flushed, renamed.

Trainer writes its files one after the other into `checkpoint-<step>`, so that a run that is killed meanwhile, or a disk
that is full, leaves a folder that looks like the newest checkpoint and is none.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vision_rl.manifest import (
    MANIFEST,
    DamagedFolder,
    flush_folder,
    names_below,
    read_manifest,
    write_manifest,
)
from vision_rl.randomness import random_states, set_random_states
from vision_rl.trainer.finite import NotFiniteError, check_finite_state
from vision_rl.trainer.ranks import together
from vision_rl.trainer.stream import is_stream


if TYPE_CHECKING:
    from vision_rl.trainer.vision_trainer import VisionTrainer


logger = logging.getLogger(__name__)

ASIDE = "_saving-"  # a folder that is being written; uploads to the Hub leave out what begins with "_"
DISCARDED = "_discarded-"  # one that is being deleted
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ALMOST_NOTHING = 1 << 20  # bytes


class SaveError(OSError):
    """A checkpoint or a model could not be written. What was saved before is as it was."""


def save_checkpoint(trainer: "VisionTrainer", trial: Any) -> Path:
    """Save a checkpoint as Trainer's `_save_checkpoint` does, but in a folder aside that gets its name once it is whole.

    All ranks write their parts, then the main process lists and renames them.

    Raises:
        SaveError: if it cannot be written; on all ranks.
        NotFiniteError: if a weight is not finite; nothing is written then.
    """
    args, state = trainer.args, trainer.state
    run, name = Path(trainer._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    aside, best_before = run / f"{ASIDE}{name}", state.best_model_checkpoint
    check_finite_state(trainer)
    if trainer.hp_search_backend is None and trial is None:
        trainer.store_flos()
    with _explained(trainer, run, name):
        with together(trainer.accelerator):
            if args.should_save:
                _tidy(run)
                aside.mkdir(parents=True)
        with _stage(trainer):
            trainer.save_model(str(aside), _internal_call=True)
        model_files = names_below(aside) if args.should_save else []
        if state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            if best.name == name or best.is_dir():
                state.best_model_checkpoint = str(best)
        try:
            if not args.save_only_model:
                _save_training_state(trainer, aside)
            with together(trainer.accelerator):
                if args.should_save:
                    _save_trainer_state(trainer, aside)
                    write_manifest(aside, **facts_of(trainer), model_files=model_files)
                    take_name(aside, run / name)
        except Exception:
            state.best_model_checkpoint = best_before
            raise
    if args.should_save:
        _rotate(trainer, run, run / name)
    if args.push_to_hub:
        trainer._push_from_checkpoint(str(run / name))
    return run / name


def save_model(trainer: "VisionTrainer", folder: Path) -> None:
    """Save the model. Its files take their places only when all of them are written, and the manifest comes last."""
    aside = folder / f"{ASIDE}model"
    check_finite_state(trainer, with_optimizer=False)
    with _explained(trainer, folder, "the model"):
        with together(trainer.accelerator):
            if trainer.args.should_save:
                _tidy(folder)
                aside.mkdir(parents=True)
        with _stage(trainer):
            trainer.save_model(str(aside), _internal_call=True)
        with together(trainer.accelerator):
            if trainer.args.should_save:
                write_manifest(aside)
                _move_files(aside, folder)


def checkpoints_in(run: str | Path) -> list[Path]:
    """The folders `checkpoint-<step>` of a run, oldest step first, whole or not."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(run).glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def is_aside(folder: str | Path) -> bool:
    """Whether this is a folder that is being written."""
    return Path(folder).name.startswith(ASIDE)


def _stage(trainer: "VisionTrainer") -> AbstractContextManager:
    """Run a part of a save, whose error on one rank ends all. A rank that fails while shards are exchanged leaves alone."""
    exchanges = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    return nullcontext() if exchanges else together(trainer.accelerator)


def _save_training_state(trainer: "VisionTrainer", aside: Path) -> None:
    """Save the optimizer, the schedule, the scaler and the random states of each rank."""
    with _stage(trainer):
        trainer._save_optimizer_and_scheduler(str(aside))
    with together(trainer.accelerator):
        trainer._save_scaler(str(aside))
        trainer._save_rng_state(str(aside))


def _save_trainer_state(trainer: "VisionTrainer", aside: Path) -> None:
    """Save `trainer_state.json`, with the states of callbacks."""
    states: dict[str, Any] = {}
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    trainer.state.stateful_callbacks = {name: kept if len(kept) > 1 else kept[0] for name, kept in states.items()}  # type: ignore[assignment]
    trainer.state.save_to_json(str(aside / TRAINER_STATE_NAME))


def facts_of(trainer: "VisionTrainer") -> dict[str, Any]:
    """The facts that a resume compares. Another split of the batch is the same run; another batch is another run."""
    args = trainer.args
    return {
        "global_step": trainer.state.global_step,
        "world_size": args.world_size,
        "images_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "train_rows": None if is_stream(trainer.train_dataset) else len(cast(Sized, trainer.train_dataset)),
        "save_only_model": args.save_only_model,
        "optim": getattr(args.optim, "value", args.optim),
        "learning_rate": args.learning_rate,
        "encoder_learning_rate": args.encoder_learning_rate,
        "weight_decay": args.weight_decay,
    }


def take_name(aside: Path, target: Path) -> None:
    """Rename a whole folder; one that has the name already, such as a damaged one, is deleted."""
    discarded = target.with_name(f"{DISCARDED}{target.name}")
    if target.exists():
        shutil.rmtree(discarded, ignore_errors=True)
        os.rename(target, discarded)
    os.rename(aside, target)
    flush_folder(target.parent)
    shutil.rmtree(discarded, ignore_errors=True)


def _move_files(aside: Path, folder: Path) -> None:
    """Move files into a folder that may hold others. While it has parts of two models, it has no manifest."""
    try:
        before = set(read_manifest(folder)["files"])
    except DamagedFolder:
        before = set()
    (folder / MANIFEST).unlink(missing_ok=True)
    names = list(read_manifest(aside)["files"])
    for name in [*names, MANIFEST]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, folder / name)
        flush_folder((folder / name).parent)
    for name in before - set(names):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(aside, ignore_errors=True)


def _rotate(trainer: "VisionTrainer", run: Path, newest: Path) -> None:
    """Delete the oldest checkpoints beyond `save_total_limit`, never the one just written, nor the best."""
    limit, best = trainer.args.save_total_limit, trainer.state.best_model_checkpoint
    if limit is None or limit <= 0:
        return
    best_name = Path(best).name if best else None
    others = [path for path in checkpoints_in(run) if path.name not in (newest.name, best_name)]
    num_others = max(0, limit - (1 if best_name in (None, newest.name) else 2))
    others.sort(key=lambda path: path.stat().st_mtime)  # a run that went back writes lower steps later
    surplus = others[: len(others) - num_others]
    if surplus:
        trainer._finish_current_push()  # which may be of one of them
    for folder in surplus:
        _discard(folder)


def _discard(folder: Path) -> None:
    """Delete a checkpoint, under a name that nobody takes for one while it is half gone."""
    discarded = folder.with_name(f"{DISCARDED}{folder.name}")
    shutil.rmtree(discarded, ignore_errors=True)
    os.rename(folder, discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def _tidy(run: Path) -> None:
    """Delete what an interrupted save or deletion has left."""
    for left in [*run.glob(f"{ASIDE}*"), *run.glob(f"{DISCARDED}*")]:
        shutil.rmtree(left)


@contextmanager
def _explained(trainer: "VisionTrainer", folder: Path, name: str) -> Iterator[None]:
    """Turn any failure of writing into a `SaveError` that says where, why, and what is still there."""
    try:
        yield
    except Exception as error:
        cause = _first_os_error(error)
        text, free = str(cause or error).splitlines()[0], _free_bytes(folder)
        full = (cause is not None and cause.errno in _FULL) or "No space left" in text or free < _ALMOST_NOTHING
        why = f"the disk is full ({free / 1e6:.0f} MB are free): {text}" if full else f"{type(error).__name__}: {text}"
        if trainer.args.should_save:
            for left in folder.glob(f"{ASIDE}*"):
                shutil.rmtree(left, ignore_errors=True)
        before = [path.name for path in checkpoints_in(folder)]
        kept = f"{before[-1]}, saved before, is untouched" if before else "no checkpoint was saved before"
        code = errno.ENOSPC if full else (cause.errno if cause is not None else None) or errno.EIO
        raise SaveError(code, f"{name} could not be written: {why}; {kept}", str(folder)) from error


def _first_os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class StepBoundary(TrainerCallback):
    """Knows the last moment at which the run could have been saved, so that one that ends by an error still can be.

    An update step that fails has drawn random numbers already: those of the boundary are kept.
    """

    def __init__(self) -> None:
        self.saved_step, self._moving = 0, False
        self._random_states: tuple | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved_step, self._moving, self._random_states = state.global_step, False, None
        if state.global_step >= state.max_steps:
            control.should_training_stop = True

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._moving = True

    def on_step_end(self, args, state, control, **kwargs):
        self._moving = False
        self._keep()

    def on_evaluate(self, args, state, control, **kwargs):
        self._keep()

    def on_save(self, args, state, control, **kwargs):
        self.saved_step = state.global_step

    def save(self, trainer: "VisionTrainer") -> Path | None:
        """A checkpoint of the last boundary, if one is wanted and was not written; `None` where there is none to keep."""
        step, kept = trainer.state.global_step, self._random_states
        if self._moving or kept is None or step <= self.saved_step or trainer.args.save_strategy == "no":
            return None
        set_random_states(kept)
        return save_checkpoint(trainer, None)

    def _keep(self) -> None:
        self._random_states = random_states()


def keep_what_was_done(trainer: "VisionTrainer", boundary: StepBoundary, error: Exception) -> None:
    """Save a checkpoint of the last whole step when a run ends by an error and all ranks are there to write it."""
    all_ranks = trainer.accelerator.num_processes == 1 or isinstance(error, NotFiniteError)
    if not all_ranks or isinstance(error, SaveError):
        return
    try:
        folder = boundary.save(trainer)
    except Exception as again:
        logger.warning("What was done since the last checkpoint is lost: %s", again)
    else:
        if folder is not None:
            logger.warning("The run ends with an error; %s has what was done before it.", folder)
