"""Time and memory of a step of reward tuning, against the scripts that a transformers user would write.

    python benchmarks/step.py --figures                                   # the figures of docs/performance.md, on a CPU
    python benchmarks/step.py --num_generations 8 --length 64
    python benchmarks/step.py --vit b --image_size 640 --length 600 --images 32 --dtype bfloat16 --device cuda
    python benchmarks/step.py --baseline other_script.py --against naive  # a script of somebody else's

All have the same weights, images, sizes and threads, and take their steps in turns in one process. First their
log-probabilities of the same samples are compared (1e-5), and their gradients (1e-4 of the norm). A ratio is the
median of the rounds' ratios, above 1 where ours is faster. Each implementation draws new samples in each step, from
the same distribution: with --captions the model itself ends them after about 12 tokens, without being forced. Memory
is that of a step beyond weights, optimiser state and images.
"""

from dataclasses import dataclass, field, replace

import torch
from baselines import OutsideScript
from measuring import report
from transformers import HfArgumentParser
from turns import OURS, Scripts, check_equal, make_scripts, step_peaks, step_times
from workload import Workload, make_model


FIGURES = (
    {"num_generations": 2, "length": 64, "images": 4},
    {"num_generations": 8, "length": 64, "images": 2},
    {"num_generations": 8, "length": 64, "images": 4, "vocab_size": 30_000, "captions": True},
)


@dataclass
class StepArguments:
    figures: bool = field(default=False, metadata={"help": "ViT-S, G=2, G=8, and G=8 with captions of 30k words."})
    against: list[str] = field(default_factory=lambda: ["naive", "competent"])
    baseline: str | None = field(default=None, metadata={"help": "A file that has the scripts, in place of ours."})
    rounds: int = 5
    memory: bool = True


def compare(workload: Workload, args: StepArguments) -> list[dict]:
    """A row for each script."""
    scripts: Scripts
    if args.baseline is None:
        model = make_model(workload)
        scripts = make_scripts(workload, model, tuple(args.against))
    else:
        scripts = {name: OutsideScript(args.baseline, name, workload) for name in args.against}
        model = next(iter(scripts.values())).model
    differences = check_equal(workload, model, scripts)
    times = step_times(workload, model, scripts, args.rounds)
    peaks = step_peaks(workload, model, scripts) if args.memory else None
    return [
        {
            **workload.describe(),
            "against": name,
            "step": times.ratio(name),
            "sample": times.ratio(name, "sample"),
            "learn": times.ratio(name, "learn"),
            "ours, s": times.seconds(OURS),
            "of it sampling": times.seconds(OURS, "sample") / times.seconds(OURS),
            "tokens": f"{times.seconds(OURS, 'tokens'):.0f} / {times.seconds(name, 'tokens'):.0f}",
            "memory, MiB": peaks[OURS].mib if peaks else None,
            "memory, share": peaks[OURS].bytes / peaks[name].bytes if peaks else None,
            "logp differs by": differences["logp"],
            "gradient": differences["gradient"],
        }
        for name in scripts
    ]


def main(workload: Workload, args: StepArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    workloads = [replace(workload, **figure) for figure in FIGURES] if args.figures else [workload]
    return [row for each in workloads for row in compare(each, args)]


if __name__ == "__main__":
    report("step", main(*HfArgumentParser((Workload, StepArguments)).parse_args_into_dataclasses()))
