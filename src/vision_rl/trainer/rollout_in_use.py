"""The rollout that one update step learns from, or several in turn, and what a checkpoint between them keeps of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Trainer

from vision_rl.manifest import naming
from vision_rl.trainer.rollout import Rollout


class RolloutInUse:
    """Hands each update step its micro-batches with their parts of the rollout, and draws the next when it is used up.

    Of a rollout of K micro-batches a rank, an update step takes as many as are accumulated. So the first steps find
    theirs loaded ahead; when the rollout is learned from again, the data order brings its rows again.

    Args:
        num_updates: update steps that learn from one rollout.
        num_batches: K.
    """

    def __init__(self, num_updates: int, num_batches: int):
        self.num_updates, self.num_batches = num_updates, num_batches
        self.forget()

    def forget(self) -> None:
        self.parts: list[Rollout] = []
        self.ahead: list[dict] = []

    def batches(
        self,
        step: int,
        count: int,
        load: Callable[[int], list[dict]],
        draw: Callable[[list[dict]], list[Rollout]],
    ) -> list[dict]:
        """The `count` micro-batches of an update step, each with its part as `rollout`; fewer where the data end.

        Args:
            load: the next micro-batches, ready for the model.
            draw: a rollout of such, in their parts.
        """
        position = step % self.num_updates
        if position == 0:
            self.ahead = load(self.num_batches)
            self.parts = draw(self.ahead) if self.ahead else []
        batches = self.ahead[:count] or load(count)
        self.ahead = self.ahead[count:]
        first = position * count % self.num_batches
        parts = self.parts[first : first + len(batches)]
        if [batch["row_index"].tolist() for batch in batches] != [part.row_index.tolist() for part in parts]:
            raise ValueError(
                f"Step {step} is number {position + 1} of {self.num_updates} that learn from one rollout, but the rollout "
                "has none of its images. A resumed run needs the batch sizes, processes, data and seed that the checkpoint was "
                f"made with, or a checkpoint whose step is a multiple of {self.num_updates}; a callback may stop an epoch "
                "only at such a step."
            )
        return [{**batch, "rollout": part} for batch, part in zip(batches, parts, strict=True)]

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, folder: str, step: int, rank: int) -> None:
        """This rank's part, if the next step goes on with it."""
        if step % self.num_updates:
            torch.save([part.state_dict() for part in self.parts], _file(folder, rank))

    def load(self, folder: str, rank: int, device: torch.device) -> None:
        file = _file(folder, rank)
        if file.exists():
            with naming(file):
                states = torch.load(file, map_location=device, weights_only=True)
                self.parts = [Rollout.from_state_dict(state) for state in states]


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / f"rollout_{rank}.pt"


@contextmanager
def prepared_already(trainer: Trainer, prepared: bool) -> Iterator[None]:
    """Trainer's step would prepare again what was prepared for the rollout: an augmentation would act twice."""
    if prepared:
        trainer._prepare_inputs = lambda inputs: inputs  # type: ignore[method-assign]
    try:
        yield
    finally:
        if prepared:
            del trainer._prepare_inputs
