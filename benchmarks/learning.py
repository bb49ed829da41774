"""The learning pass against the scripts': time and memory, by default with a vocabulary of 30 000 and G = 8.

    python benchmarks/learning.py
    python benchmarks/learning.py --vit b --image_size 512 --images 32 --length 128 --dtype bfloat16 --device cuda

The pass goes from samples and rewards to gradients: encoder, teacher-forced decoder, log-probabilities, backward. Its
memory is the peak of a whole step beyond weights, optimiser state and images. The gradients, which no way of learning
saves, are part of it. That both compute the same is checked first.
"""

from dataclasses import dataclass, field

import torch
from measuring import MIB, report
from transformers import HfArgumentParser
from turns import OURS, check_equal, make_scripts, step_peaks, step_times
from workload import Workload, make_model


@dataclass
class LearningArguments:
    against: list[str] = field(default_factory=lambda: ["naive", "competent"])
    rounds: int = 3


def main(workload: Workload, args: LearningArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    model = make_model(workload)
    scripts = make_scripts(workload, model, tuple(args.against))
    differences = check_equal(workload, model, scripts)
    times = step_times(workload, model, scripts, args.rounds)
    peaks = step_peaks(workload, model, scripts)
    gradients = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return [
        {
            **workload.describe(),
            "against": name,
            "learn": times.ratio(name, "learn"),
            "ours, s": times.seconds(OURS, "learn"),
            "theirs, s": times.seconds(name, "learn"),
            "memory, MiB": peaks[OURS].mib,
            "theirs, MiB": peaks[name].mib,
            "memory, share": peaks[OURS].bytes / peaks[name].bytes,
            "gradients, MiB": gradients / MIB,
            "gradients differ by": differences["gradient"],
        }
        for name in scripts
    ]


if __name__ == "__main__":
    parser = HfArgumentParser((Workload, LearningArguments))
    parser.set_defaults(vocab_size=30_000, num_generations=8, images=2, length=32)
    report("learning", main(*parser.parse_args_into_dataclasses()))
