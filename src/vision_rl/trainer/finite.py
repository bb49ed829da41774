"""What is not finite is noticed before the optimizer moves and before anything is saved, and can be looked at later.

One NaN in a gradient makes every weight NaN at the next step, and a run that goes on saves them over the last good ones.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from vision_rl.trainer.ranks import together


if TYPE_CHECKING:
    from vision_rl.trainer.vision_trainer import VisionTrainer


logger = logging.getLogger(__name__)

FAULTS_FOLDER = "faults"
MOST_FAULTS = 3  # folders that a run writes: each has a model
_SHOWN_ROWS = 32


class NotFiniteError(ValueError):
    """A loss, gradient, reward or weight is NaN or infinite. The weights are those before the step, and nothing was saved."""


class FiniteCheck:
    """Looks at each update step of a trainer before its optimizer moves; `on_nonfinite` of the config says what happens.

    It keeps the micro-batches of the step, which the trainer holds anyway, and asks the device once a step.
    """

    def __init__(self, trainer: "VisionTrainer"):
        self._trainer = trainer
        self._batches: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._in_a_row = 0
        self.num_skipped = 0
        self.num_written = 0

    def forget(self) -> None:
        """Drop what an update step has left, once it was checked or was interrupted."""
        self._batches, self._losses = [], []

    def watch(self, batch: dict[str, Any], loss: torch.Tensor) -> torch.Tensor:
        """Remember a micro-batch; returns the loss as the log is to count it, which a skipped step must not spoil."""
        self._batches.append(batch)
        self._losses.append(loss.detach())
        return loss if self._trainer.args.on_nonfinite == "raise" else torch.nan_to_num(loss, 0.0, 0.0, 0.0)

    def check(self, grad_norm: torch.Tensor | float | None) -> None:
        """Check the update step on all ranks together, before the optimizer moves.

        Raises:
            NotFiniteError: on all ranks, with `on_nonfinite="raise"`, or after `max_skipped_steps` in a row.
        """
        trainer = self._trainer
        device = trainer.args.device
        if isinstance(grad_norm, DTensor):  # FSDP2's
            grad_norm = grad_norm.full_tensor()
        grad_norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, device=device).float()
        finite = [loss.float().isfinite() for loss in self._losses]
        finite += [~value.isinf().any() for batch in self._batches for value in scores_of(batch).values()]
        values = torch.stack([torch.stack(finite or [grad_norm.isfinite()]).all(), grad_norm.isfinite()])
        if trainer.accelerator.num_processes > 1:
            values = trainer.accelerator.gather(values[None]).all(0)
        losses_finite, gradient_finite = values.tolist()
        if losses_finite and (gradient_finite or self._is_left_to_the_scaler()):
            self._in_a_row = 0
            self.forget()
            return
        self._in_a_row += 1
        message = self._fault(gradient_finite)
        self.forget()
        if trainer.args.on_nonfinite == "raise":
            raise NotFiniteError(message)
        if self._in_a_row >= trainer.args.max_skipped_steps:
            raise NotFiniteError(
                f"{message} This was the last of {self._in_a_row} steps in a row that were left out (max_skipped_steps)."
            )
        self.num_skipped += 1
        logger.warning("%s The step is left out.", message)
        trainer.leave_out_step()

    def _is_left_to_the_scaler(self) -> bool:
        """Whether float16's scaler leaves the step out itself: infinite gradients are how it finds the loss scale."""
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        return scaler is not None and scaler.get_scale() >= 1

    # --- telling ------------------------------------------------------------------------------------------------------

    def _fault(self, gradient_finite: bool) -> str:
        """Write the step down, and say on every rank what is not finite, where, and how to look at it."""
        trainer, step = self._trainer, self._trainer.state.global_step
        told = self._told_of_this_rank()
        if trainer.accelerator.num_processes > 1:
            told = [f"rank {rank}: {text}" for rank, texts in enumerate(gather_object([told])) for text in texts]
        what = "; ".join(told) or "the gradient of " + self._rows(range(len(self._batches)))
        if not gradient_finite and (names := self._gradients()):
            what += f"; in the gradient of {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        folder = Path(str(trainer.args.output_dir)) / FAULTS_FOLDER / f"step-{step}"
        message = f"In update step {step} something is not finite, before the optimizer moved: {what}."
        if self.num_written >= MOST_FAULTS:
            return message
        self.num_written += 1
        self._write(folder, message)
        return f"{message} To look at the batch: python -m vision_rl.trainer.replay {folder}"

    def _told_of_this_rank(self) -> list[str]:
        told = []
        for batch in self._batches:
            for name, value in scores_of(batch).items():
                if value.isinf().any():
                    image, sample = value.isinf().nonzero()[0, :2].tolist()
                    row, worst = batch["row_index"][image].item(), value[image, sample].abs().max().item()
                    told.append(f"{name} of row {row}, sample {sample}, is {worst}")
        for place, loss in enumerate(self._losses):
            if not loss.isfinite():
                told.append(f"the loss of {self._rows([place])} is {loss.item()}")
        return told

    def _rows(self, places: Iterable[int]) -> str:
        rows = [row for place in places for row in self._batches[place]["row_index"].tolist()]
        more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
        return f"the rows {rows[:_SHOWN_ROWS]}{more}"

    def _gradients(self) -> list[str]:
        named = self._trainer.model.named_parameters()
        return [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]

    def _write(self, folder: Path, message: str) -> None:
        """Write the model as it was before the step, and each rank's micro-batches as tensors and JSON, never as pickles."""
        trainer, rank = self._trainer, self._trainer.args.process_index
        try:
            with together(trainer.accelerator):
                if trainer.args.should_save:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
            with together(trainer.accelerator):
                for place, batch in enumerate(self._batches):
                    self._write_batch(folder / f"batch-{rank}-{place}", batch, self._losses[place])
            trainer.save_model(str(folder / "_saving-model"), _internal_call=True)
            if trainer.args.should_save:
                (folder / "_saving-model").rename(folder / "model")
                fault = {"step": trainer.state.global_step, "what": message}
                (folder / "fault.json").write_text(json.dumps(fault) + "\n")
        except Exception as error:  # the fault itself is what must be told
            logger.warning("The fault could not be written to %s: %s", folder, error)

    def _write_batch(self, path: Path, batch: dict[str, Any], loss: torch.Tensor) -> None:
        tensors = {**plain_tensors(batch), "loss": loss.float()}
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, f"{path}.safetensors")
        columns = batch["columns"].columns if "columns" in batch else {}
        rows = {name: [_shown(value) for value in values] for name, values in columns.items()}
        Path(f"{path}.json").write_text(json.dumps(rows, indent=1) + "\n")


def plain_tensors(batch: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a batch under names such as `completions.completion_ids`, without those that hang on a graph."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            if value.grad_fn is None:
                tensors[prefix + name] = value
        elif isinstance(value, dict):
            tensors |= plain_tensors(value, f"{prefix}{name}.")
        elif is_dataclass(value):
            tensors |= plain_tensors(vars(value), f"{prefix}{name}.")
    return tensors


def scores_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The rewards and advantages of a micro-batch's samples, `(B, G)` or `(B, G, T)`; a reward of NaN does not apply."""
    tensors = {name.rpartition(".")[2]: value for name, value in plain_tensors(batch).items()}
    return {name: tensors[name] for name in ("rewards", "advantages") if name in tensors}


def _shown(value: Any) -> Any:
    """A column's value in JSON's types, for a person to read."""
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value if isinstance(value, str | int | float | None) else repr(value)[:200]


# --- before saving ----------------------------------------------------------------------------------------------------


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of the floating point tensors with a NaN or an infinity in them, found by one reading of all.

    Of a sharded tensor this rank's part is looked at.
    """
    held = ((name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors)
    named = [(name, tensor.detach()) for name, tensor in held if tensor.is_floating_point() and tensor.numel()]
    # large numbers may overflow in the norm: then each is looked at
    if get_total_norm([tensor for _, tensor in named]).isfinite():
        return []
    return [name for name, tensor in named if not tensor.isfinite().all()]


def check_finite_state(trainer: "VisionTrainer", with_optimizer: bool = True) -> None:
    """Raise if a weight, a buffer or a moment of the optimizer is not finite, before anything is saved.

    Raises:
        NotFiniteError: on all ranks.
    """
    with together(trainer.accelerator):
        names = not_finite([*trainer.model.named_parameters(), *_saved_buffers(trainer.model)])
        if with_optimizer and not names and trainer.optimizer is not None and not trainer.is_deepspeed_enabled:
            states = enumerate(trainer.optimizer.state.values())
            names = not_finite(
                (f"the optimizer's {name}", value)
                for _, state in states
                for name, value in state.items()
                if isinstance(value, torch.Tensor)
            )
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise NotFiniteError(
                f"At step {trainer.state.global_step} {names[0]}{more} is not finite: nothing is saved, and what was saved "
                "before is untouched. Go back to the last checkpoint with a lower learning rate, or with max_grad_norm."
            )


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that are saved; others, such as masks, may hold infinities on purpose."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer
