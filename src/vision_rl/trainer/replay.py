"""`python -m vision_rl.trainer.replay runs/x/faults/step-41`: which rows of a step were not finite, and where it began.

The folder holds the model as it was before the step and the batches of all ranks, as safetensors and JSON. Each row is
passed forward and back alone, without dropout, in float32 on the CPU: a row that is finite here and was not in training
points to the precision there, or to another row of its batch.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from vision_rl.models.served import image_inputs
from vision_rl.models.unwrapping import base_model
from vision_rl.models.uvim import UViMConfig, UViMModel
from vision_rl.trainer.encoding import images_of
from vision_rl.trainer.finite import not_finite, scores_of
from vision_rl.trainer.loading import load_policy
from vision_rl.trainer.teacher_forcing import label_loss


@dataclass
class ReplayedRow:
    """The result of passing one row of a batch forward and back.

    Args:
        batch: the file's name.
        row: its number in the data set.
        loss: the row's own part, not divided by anything.
        grad_norm: of all parameters.
        module: the first module with an output that is not finite, if there is one.
        scores: rewards and advantages of its samples, in tuning.
    """

    batch: str
    row: int
    loss: float
    grad_norm: float
    module: str | None
    scores: dict[str, list]

    @property
    def finite(self) -> bool:
        """Whether loss, gradient and scores are finite. A reward of NaN means that it does not apply."""
        values = torch.tensor([self.loss, self.grad_norm])
        rewards, advantages = (torch.tensor(self.scores.get(name, [])) for name in ("rewards", "advantages"))
        return bool(values.isfinite().all() and advantages.isfinite().all() and not rewards.isinf().any())

    def __str__(self) -> str:
        scores = "".join(f", {name} {values}" for name, values in self.scores.items())
        where = f", first in {self.module}" if self.module else ""
        return f"{self.batch}: row {self.row}: loss {self.loss:.4g}, gradient {self.grad_norm:.4g}{scores}{where}"


def replay(folder: str | Path) -> Iterator[ReplayedRow]:
    """Pass each row of a fault forward and back; a trainer wrote it to `output_dir/faults/step-<n>`.

    Raises:
        ValueError: if this is no such folder.
    """
    folder = Path(folder)
    batches = sorted(folder.glob("batch-*.safetensors"))
    if not batches or not (folder / "model").is_dir():
        raise ValueError(f"{folder} holds no model and batches: give a folder such as runs/x/faults/step-41.")
    model = _load(folder / "model").eval()
    for path in batches:
        tensors = load_file(path)
        for place, row in enumerate(tensors["row_index"].tolist()):
            yield _replayed(model, path.name, row, _of_row(tensors, place))


def _load(folder: Path) -> nn.Module:
    if find_adapter_config_file(str(folder)) is None and isinstance(
        AutoConfig.from_pretrained(folder, trust_remote_code=False), UViMConfig
    ):
        return UViMModel.from_pretrained(folder, dtype=torch.float32)
    return load_policy(str(folder), {"dtype": torch.float32})


def _of_row(tensors: dict[str, torch.Tensor], place: int) -> dict[str, torch.Tensor]:
    """The part of a batch that belongs to one row."""
    count = len(tensors["row_index"])
    return {name: value[place : place + 1] for name, value in tensors.items() if value.ndim and len(value) == count}


def _replayed(model: nn.Module, batch: str, row: int, tensors: dict[str, torch.Tensor]) -> ReplayedRow:
    found: list[str] = []

    def look(name: str, output) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if not found and not_finite((name, value) for value in outputs if isinstance(value, torch.Tensor)):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    model.zero_grad()
    try:
        loss = _loss(model, tensors)
        if loss.requires_grad:
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients).item()
    scores = {name: value[0].tolist() for name, value in scores_of(tensors).items()}
    return ReplayedRow(batch, row, loss.item(), norm, found[0] if found else None, scores)


def _loss(model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The row's share of the loss: of stage I, of labels, of its samples, or of both."""
    if isinstance(model, UViMModel):
        targets = {name.removeprefix("targets."): v for name, v in tensors.items() if name.startswith("targets.")}
        return model(tensors["pixel_values"], targets).loss
    policy = base_model(model)
    images = image_inputs(policy, images_of(tensors))
    loss = torch.zeros(())
    if "labels" in tensors:
        loss = loss + label_loss(policy, model, images, tensors).sum()
    if any(name.endswith("completion_ids") for name in tensors):
        loss = loss + _samples_loss(policy, model, images, tensors)
    return loss


def _samples_loss(
    policy: nn.Module, model: nn.Module, images: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The log-probabilities of a row's G samples, weighted by minus their advantages."""
    ids = _named(tensors, "completion_ids").flatten(0, 1)  # (G, T)
    labels = ids.masked_fill(_named(tensors, "completion_mask").flatten(0, 1) == 0, -100)
    images = {name: value.repeat_interleave(len(ids), dim=0) for name, value in images.items()}
    advantages = _named(tensors, "advantages")[0].view(len(ids), -1)  # (G, 1), or of each token (G, T)
    return (label_loss(policy, model, images, {"labels": labels}) * advantages).sum()


def _named(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensor whose name ends like this; the name begins with the object that held the tensor."""
    return next(value for whole, value in tensors.items() if whole.rpartition(".")[2] == name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every row; the exit status is 1 if one of them is not finite here either."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.trainer.replay", description=__doc__)
    parser.add_argument("folder", metavar="OUTPUT_DIR/faults/step-N")
    try:
        rows = list(replay(parser.parse_args(arguments).folder))
    except (OSError, ValueError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(f"{'   ' if row.finite else '!!!'} {row}")
    count = sum(not row.finite for row in rows)
    print(f"{count} of {len(rows)} rows are not finite.")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
