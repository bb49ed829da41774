"""What Trainer's loop, logging and loading of data add to a training step, in per cent of the bare step.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --image_size 512 --dataloader_num_workers 2 --clock wall

The bare step is `training_step` and the optimiser on a batch that is in memory. It takes turns with the same step in
the loop of `trainer.train()`, where JPEGs are decoded and resized and, as by default, every tenth step is logged.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import datasets
import torch
from measuring import report
from photos import PhotoProcessor, make_photos
from transformers import HfArgumentParser, TrainerCallback
from turns import make_trainer
from workload import Workload, make_model

from vision_rl import VisionRewardTrainer


@dataclass
class OverheadArguments:
    rounds: int = 20
    dataloader_num_workers: int = 0


class Loop(TrainerCallback):
    """Seconds from the end of one step to the end of the next, minus those of the bare step that runs between them."""

    def __init__(self, trainer: VisionRewardTrainer, now):
        self.trainer, self.now = trainer, now
        self.batch = next(iter(trainer.get_train_dataloader()))
        self.in_loop: list[float] = []
        self.bare: list[float] = []
        self.resumed: float | None = None

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        start = self.now()
        if self.resumed is not None:
            self.in_loop.append(start - self.resumed)
        bare = self.now()
        self.trainer.training_step(model, self.batch, len(self.batch["row_index"]))
        optimizer.step()
        model.zero_grad()
        self.resumed = self.now()
        self.bare.append(self.resumed - bare)


def main(workload: Workload, args: OverheadArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), workload.images * args.rounds)
        options = {
            "logging_strategy": "steps",
            "logging_steps": 10,
            "dataloader_num_workers": args.dataloader_num_workers,
        }
        processor = PhotoProcessor.of_size(workload.image_size)
        trainer = make_trainer(
            VisionRewardTrainer, workload, make_model(workload), args.rounds + 2, photos, processor, **options
        )
        loop = Loop(trainer, workload.now)
        trainer.add_callback(loop)
        trainer.train()
    in_loop, bare = loop.in_loop[1:], loop.bare[1:-1]  # the first step warms up; no step follows the last bare one
    return [
        {
            **workload.describe(),
            "workers": args.dataloader_num_workers,
            "bare step, s": sum(bare) / len(bare),
            "in the loop, s": sum(in_loop) / len(in_loop),
            "overhead, %": 100 * (sum(in_loop) / sum(bare) - 1),
            "median, %": 100 * (median(a / b for a, b in zip(in_loop, bare, strict=True)) - 1),
        }
    ]


if __name__ == "__main__":
    report("overhead", main(*HfArgumentParser((Workload, OverheadArguments)).parse_args_into_dataclasses()))
