"""The rollout of an update step: its images answered, scored and compared at once, then learned from in parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from vision_rl.models.completions import SampledCompletions
from vision_rl.rewards import TokenTargets
from vision_rl.trainer.collator import BatchColumns


@dataclass(frozen=True)
class Rollout:
    """The completions of B images with all that learning needs of them; each micro-batch carries its part.

    Args:
        row_index: `(B,)`, the images' place in the data set.
        completions: of each image G, with the sampler's log-probabilities: `(B, G, T)`.
        rewards: `(B, G)`, NaN where none applied; or the returns of each token, `(B, G, T)`, of which the first is kept.
        advantages: `(B, G)`, or `(B, G, T)` where the tokens of a completion do not learn alike.
        token_targets: of the `B*G` completions.
        step: the update step at which they were drawn.
    """

    row_index: torch.Tensor
    completions: SampledCompletions
    rewards: torch.Tensor
    advantages: torch.Tensor
    token_targets: list[TokenTargets]
    step: int

    def __post_init__(self):
        if self.rewards.ndim == 3:
            object.__setattr__(self, "rewards", self.rewards[..., 0])

    def split(self, sizes: Sequence[int]) -> list["Rollout"]:
        """Cut the rollout into one part a micro-batch, of `sizes` images each."""
        stops = torch.tensor(sizes).cumsum(0).tolist()
        return [self._part(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]

    def _part(self, start: int, stop: int) -> "Rollout":
        ids, mask, logps = (field[start:stop] for field in self.completions)
        times = ids.shape[1]
        targets = [_of_rows(targets, start * times, stop * times) for targets in self.token_targets]
        return Rollout(
            self.row_index[start:stop],
            SampledCompletions(ids, mask, logps),
            self.rewards[start:stop],
            self.advantages[start:stop],
            [each for each in targets if len(each.positions)],
            self.step,
        )

    @staticmethod
    def joined(parts: list["Rollout"], pad: int) -> "Rollout":
        """Join the parts into one rollout, images in order. Shorter completions are padded to the longest."""
        targets, rows = [], 0
        for part in parts:
            targets += [_moved(each, rows) for each in part.token_targets]
            rows += part.completions.completion_ids.shape[:2].numel()
        length = max(part.completions.completion_ids.shape[2] for part in parts)
        fields = zip(*(part.completions for part in parts), strict=True)
        ids, mask, logps = (_cat(field, length, fill) for field, fill in zip(fields, (pad, 0, 0.0), strict=True))
        per_token = any(part.advantages.ndim == 3 for part in parts)
        advantages = [_per_token(part) if per_token else part.advantages for part in parts]
        return Rollout(
            torch.cat([part.row_index for part in parts]),
            SampledCompletions(ids, mask, logps),
            torch.cat([part.rewards for part in parts]),
            _cat(advantages, length, 0.0) if per_token else torch.cat(advantages),
            targets,
            parts[0].step,
        )

    def state_dict(self) -> dict[str, Any]:
        """The rollout as tensors and plain values, which a checkpoint can keep."""
        ids, mask, logps = self.completions
        return {
            **{"row_index": self.row_index, "ids": ids, "mask": mask, "logps": logps},
            **{"rewards": self.rewards, "advantages": self.advantages},
            "token_targets": [vars(targets) for targets in self.token_targets],
            "step": self.step,
        }

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> "Rollout":
        return Rollout(
            state["row_index"],
            SampledCompletions(state["ids"], state["mask"], state["logps"]),
            state["rewards"],
            state["advantages"],
            [TokenTargets(**targets) for targets in state["token_targets"]],
            state["step"],
        )


def _of_rows(targets: TokenTargets, start: int, stop: int) -> TokenTargets:
    """The token targets of completions `start` to `stop`, whose rows are numbered from 0 again."""
    rows = targets.positions[:, 0]
    return _moved(targets.select((rows >= start) & (rows < stop)), -start)


def _moved(targets: TokenTargets, rows: int) -> TokenTargets:
    """The token targets with their rows moved by `rows`: so many completions of other parts come before them."""
    return replace(targets, positions=targets.positions + targets.positions.new_tensor([rows, 0]))


def _cat(tensors: Sequence[torch.Tensor], length: int, fill: float) -> torch.Tensor:
    """Tensors `(B, G, T)` joined over images, each padded to `length` tokens with `fill`."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([F.pad(tensor, (0, length - tensor.shape[2]), value=fill) for tensor in tensors])


def _per_token(part: Rollout) -> torch.Tensor:
    advantages = part.advantages
    return advantages if advantages.ndim == 3 else advantages[..., None].expand_as(part.completions.completion_ids)


# --- the images of several micro-batches together -----------------------------------------------------------------------


LEARNED_ONLY = ("labels", "label_weights")  # of a width of their own in each micro-batch; sampling does not read them


def chunks_of(batches: list[dict], size: int) -> Iterator[dict]:
    """Yield the images of all micro-batches, `size` at once. Images of different shapes are never in one chunk."""
    runs: list[list[dict]] = []
    for batch in batches:
        if not runs or _shapes(runs[-1][-1]) != _shapes(batch):
            runs.append([])
        runs[-1].append(batch)
    for run in runs:
        whole, count = _together(run), sum(len(batch["row_index"]) for batch in run)
        if count <= size:
            yield whole
        else:
            yield from (_images(whole, slice(start, start + size)) for start in range(0, count, size))


def _shapes(batch: Mapping) -> dict:
    """The shapes that two batches must share to be joined into one."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return {name: value.shape[1:] for name, value in tensors.items() if name not in LEARNED_ONLY}


def _together(batches: list[dict]) -> dict:
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if isinstance(values[0], torch.Tensor) and name not in LEARNED_ONLY:
            joined[name] = torch.cat(values)
        elif isinstance(values[0], BatchColumns):
            joined[name] = BatchColumns.joined(values)
    return joined


def _images(batch: dict, which: slice) -> dict:
    """A batch with the images `which` of another batch."""
    return {
        name: value[which]
        for name, value in batch.items()
        if isinstance(value, torch.Tensor | BatchColumns) and name not in LEARNED_ONLY
    }
