"""An update step of several micro-batches: sampling for all images at once, against one micro-batch at a time.

    python benchmarks/accumulation.py --images 1 --rounds 3                 # the figures of docs/performance.md, on a CPU
    python benchmarks/accumulation.py --vit b --length 128 --images 8 --dtype bfloat16 --device cuda

Decoding goes token by token, so the number of decode steps decides how long an update takes, above all on a GPU.
Sampling at once has a price: the images are encoded a second time for learning. Both trainings compute the same and
run in turn in one process. Seconds are medians.
"""

from dataclasses import dataclass, replace
from statistics import median

import torch
from measuring import ratio, report
from transformers import HfArgumentParser
from turns import OURS, ClockedSteps, WatchedTrainer, make_trainer
from workload import Workload, make_model, noise_images


@dataclass
class AccumulationArguments:
    accumulation: int = 8
    rounds: int = 3


class CountingTrainer(WatchedTrainer):
    """Counts the tokens that are decoded one after the other."""

    decode_steps = 0

    def _sample(self, *args, **kwargs):
        completions = super()._sample(*args, **kwargs)
        self.decode_steps += completions.completion_ids.shape[-1]
        return completions


def steps_of(workload: Workload, args: AccumulationArguments, model, images_at_once: int) -> dict:
    """Seconds of the update steps after the first, and the decode steps of one update step."""
    rows = noise_images(replace(workload, images=workload.images * args.accumulation))
    options = {"gradient_accumulation_steps": args.accumulation, "per_device_generation_batch_size": images_at_once}
    steps = args.rounds + 1
    trainer = make_trainer(CountingTrainer, workload, model, steps, rows, **options)
    clocked = ClockedSteps(workload, {})
    clocked.watch(trainer)
    trainer.add_callback(clocked)
    trainer.train()
    return {
        "seconds": [step["total"] for step in clocked.steps[OURS][1:]],
        "decode steps": trainer.decode_steps / steps,
    }


def main(workload: Workload, args: AccumulationArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    model, whole = make_model(workload), workload.images * args.accumulation
    apart, at_once = (steps_of(workload, args, model, size) for size in (workload.images, whole))
    return [
        {
            **workload.describe(),
            "accumulation": args.accumulation,
            "decode steps": f"{at_once['decode steps']:.0f} / {apart['decode steps']:.0f}",
            "seconds": f"{median(at_once['seconds']):.2f} / {median(apart['seconds']):.2f}",
            "faster": ratio(apart["seconds"], at_once["seconds"]),
        }
    ]


if __name__ == "__main__":
    report("accumulation", main(*HfArgumentParser((Workload, AccumulationArguments)).parse_args_into_dataclasses()))
