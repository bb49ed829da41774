"""Pushes to the Hub while a run goes on, as `hub_strategy` says: the models of whole checkpoints, with a card."""

import copy
import json
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub import CommitOperationAdd
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from vision_rl.manifest import CARD, MANIFEST, part_of, read_manifest
from vision_rl.recording import without_secrets
from vision_rl.trainer.model_card import PICTURES


if TYPE_CHECKING:
    from vision_rl.trainer.vision_config import VisionConfig
    from vision_rl.trainer.vision_trainer import VisionTrainer


logger = logging.getLogger(__name__)

LAST = "last-checkpoint"  # its folder there, as Trainer calls it


def create_branch(trainer: "VisionTrainer", token: str | None) -> None:
    """Make the branch `hub_revision`, unless it is there."""
    args = trainer.args
    if args.hub_revision is not None and trainer.is_world_process_zero():
        where = str(trainer.hub_model_id)
        huggingface_hub.create_branch(where, branch=args.hub_revision, exist_ok=True, token=token or args.hub_token)


def push_checkpoint(trainer: "VisionTrainer", folder: Path) -> None:
    """Push a checkpoint as Trainer does, but from its own folder and with all files that belong to the model.

    Trainer copies the files of the model that it knows by name into `output_dir`, and pushes that folder. Stage I, the
    files of rewards and the card are then missing, and the folder holds parts of two models. Uploads go on while the
    model is trained. If an upload fails, a warning says so.
    """
    args, under_way = trainer.args, trainer.push_in_progress
    busy = under_way is not None and not under_way.is_done()
    if (
        not trainer.is_world_process_zero()
        or args.hub_strategy == HubStrategy.END
        or (busy and not args.hub_always_push)
    ):
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.create_model_card(str(trainer.hub_model_id).split("/")[-1])
    by_steps = args.save_strategy == SaveStrategy.STEPS
    place = f"step {trainer.state.global_step}" if by_steps else f"epoch {int(trainer.state.epoch or 0)}"
    message = f"Training in progress, {place}"
    how: Any = {"revision": args.hub_revision, "token": args.hub_token, "run_as_future": True}  # one after the other
    jobs: Any = [
        huggingface_hub.create_commit(
            str(trainer.hub_model_id),
            [*_model_files(folder), *_card_files(Path(str(args.output_dir)))],
            commit_message=message,
            **how,
        )
    ]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        jobs.append(
            huggingface_hub.upload_folder(
                repo_id=str(trainer.hub_model_id),
                folder_path=folder,
                path_in_repo=LAST if args.hub_strategy == HubStrategy.CHECKPOINT else folder.name,
                commit_message=f"{message}, checkpoint",
                delete_patterns="*",  # what the last one had, and this one has not
                **how,
            )
        )
    for job in jobs:
        job.add_done_callback(lambda done: _tell_failure(done, folder))
    going_on: Any = [*under_way.jobs, *jobs] if busy else jobs
    trainer.push_in_progress = PushInProgress(going_on)


def _model_files(folder: Path) -> list[CommitOperationAdd]:
    """Return the files of a checkpoint's model, with a manifest that lists them alone."""
    names = [name for name in read_manifest(folder)["model_files"] if name != TRAINING_ARGS_NAME]
    manifest = json.dumps(part_of(folder, names), indent=1).encode()
    files = [CommitOperationAdd(name, folder / name) for name in names]
    return [*files, CommitOperationAdd(MANIFEST, manifest)]


def _card_files(output_dir: Path) -> list[CommitOperationAdd]:
    """Return the card and its pictures. They are read now, because the next card overwrites them."""
    paths = [output_dir / CARD, *sorted((output_dir / PICTURES).glob("*.png"))]
    return [CommitOperationAdd(path.relative_to(output_dir).as_posix(), path.read_bytes()) for path in paths]


def _tell_failure(done: Future, folder: Path) -> None:
    error = done.exception()
    if error is not None:
        logger.warning("%s could not be pushed to the Hub: %s", folder, error)


def save_arguments_without_token(args: "VisionConfig", folder: str | Path) -> None:
    """Save `training_args.bin` again, without the token: the file is pushed with the others."""
    public = copy.copy(args)
    public.hub_token = None
    if isinstance(public.model_init_kwargs, dict):
        public.model_init_kwargs = without_secrets(public.model_init_kwargs)
    torch.save(public, Path(folder) / TRAINING_ARGS_NAME)
