"""How a step's time and memory grow with images, completions for each image, tokens and vocabulary.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --over num_generations --points 2 4 8 16 32

One size grows while the others stay. An exponent is the slope of a straight line through the logarithms: 1 means
growth in proportion, 0 no growth. A step has parts that do not grow, so exponents below 1 are usual at small sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from measuring import report
from transformers import HfArgumentParser
from turns import OURS, make_scripts, step_peaks, step_times
from workload import Workload, make_model


POINTS = {
    "images": [1, 2, 4, 8],
    "num_generations": [2, 4, 8, 16],
    "length": [16, 32, 64, 128],
    "vocab_size": [1000, 4000, 16_000, 64_000],
}
MEASURED = ("sample, s", "learn, s", "step, s", "memory, MiB")


@dataclass
class ScalingArguments:
    over: list[str] = field(default_factory=lambda: list(POINTS), metadata={"help": "Which sizes grow, one by one."})
    points: list[int] | None = field(default=None, metadata={"help": "The values, in place of those chosen here."})
    against: list[str] = field(default_factory=lambda: ["naive"])
    rounds: int = 3


def measure(workload: Workload, args: ScalingArguments, over: str) -> list[dict]:
    """A row for each implementation."""
    model = make_model(workload)
    scripts = make_scripts(workload, model, tuple(args.against))
    times = step_times(workload, model, scripts, args.rounds)
    peaks = step_peaks(workload, model, scripts)
    return [
        {
            **workload.describe(),
            "grows": over,
            "by": name,
            **{f"{part}, s": times.seconds(name, part) for part in ("sample", "learn")},
            "step, s": times.seconds(name),
            "memory, MiB": peaks[name].mib,
        }
        for name in (OURS, *scripts)
    ]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main(workload: Workload, args: ScalingArguments) -> tuple[list[dict], list[dict]]:
    """The figures and the exponents."""
    torch.set_num_threads(workload.threads)
    rows, exponents = [], []
    for over in args.over:
        points = args.points or POINTS[over]
        measured = [measure(replace(workload, **{over: point}), args, over) for point in points]
        for of_one in zip(*measured, strict=True):  # the rows of one implementation at all points
            slopes = {key: exponent(points, [row[key] for row in of_one]) for key in MEASURED}
            exponents.append({"grows": over, "from": points[0], "to": points[-1], "by": of_one[0]["by"], **slopes})
        rows += [row for at_point in measured for row in at_point]
    return rows, exponents


if __name__ == "__main__":
    figures, slopes = main(*HfArgumentParser((Workload, ScalingArguments)).parse_args_into_dataclasses())
    report("scaling", figures)
    report("scaling exponents", slopes)
