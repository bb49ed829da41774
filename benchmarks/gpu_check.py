"""All checks of this project on a machine with one GPU and no network, in one JSON file.

    make gpu-check                                          # writes gpu_check.json
    python benchmarks/gpu_check.py --device cpu --tiny      # the same code without a GPU, in seconds

It needs torch, transformers, accelerate and peft, but no installation: `PYTHONPATH=src`. Packages that only data,
metrics or tests use may be missing. Every check is written to the file as soon as it ends. Its `status` is "ok",
"failed" with the error, or "left out" with the reason; a failed check does not stop the others. No check begins after
450 seconds. The speeds are figures to read: no check asks for a certain speed.
"""

import copy
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from learning import gradients_of
from measuring import in_turns, ratio
from roofline import RooflineArguments
from roofline import main as roofline
from transformers import HfArgumentParser
from turns import OURS, make_scripts, pixels, step_peaks, step_times
from workload import Workload, make_model

from vision_rl.models import cuda_graphs
from vision_rl.models.completions import SampledCompletions
from vision_rl.models.cuda_graphs import CudaGraphRunner, kept_writers
from vision_rl.models.sampling import sample


TINY = {"vit": "xs", "image_size": 32, "decoder_layers": 1, "vocab_size": 50, "length": 8, "images": 2}
STEPS = {
    "detection: ViT-B 640 px, T=600, G=2": {"vit": "b", "image_size": 640, "length": 600, "images": 16},
    "captions: ViT-B 512 px, T=128, V=30k, G=8": {
        "vit": "b",
        "image_size": 512,
        "length": 128,
        "images": 16,
        "vocab_size": 30_000,
        "num_generations": 8,
    },
}
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class GpuCheckArguments:
    device: str = "cuda"
    tiny: bool = False  # sizes so small that all takes seconds
    output: str = "gpu_check.json"
    seconds: float = 450  # no check begins later
    rounds: int = 2


class LeftOut(Exception):
    """A check that this machine cannot make."""


def main(args: GpuCheckArguments) -> dict[str, dict]:
    """The results of the checks by name, which are also written to `args.output` after each check."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # to compare float32
    checks: dict[str, Callable[[GpuCheckArguments], Any]] = {
        "machine": machine,
        "sampler and learning pass against a CPU": against_a_cpu,
        "CUDA graphs against eager steps": graphs_against_eager_steps,
        "bfloat16": bfloat16,
        "tests marked gpu": marked_tests,
    }
    for name, sizes in STEPS.items():
        workload = Workload(**{**sizes, "dtype": "bfloat16", "device": args.device, **(TINY if args.tiny else {})})
        checks[f"step, {name}"] = lambda args, workload=workload: step(workload, args)
        checks[f"limits, {name}"] = lambda args, workload=workload: limits(workload, args)
    start, results = time.monotonic(), {}
    for name, check in checks.items():
        began = time.monotonic()
        try:
            if began - start > args.seconds:
                raise LeftOut(f"{args.seconds:.0f} seconds are over")
            results[name] = {"status": "ok", **check(args)}
        except LeftOut as reason:
            results[name] = {"status": "left out", "reason": str(reason)}
        except Exception as error:
            results[name] = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        results[name]["seconds"] = round(time.monotonic() - began, 1)
        print(name, json.dumps(results[name]), flush=True)
        Path(args.output).write_text(json.dumps(results, indent=1))
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return results


# --- are the results right? -----------------------------------------------------------------------------------------


def small(args: GpuCheckArguments, **sizes) -> Workload:
    """A workload for comparisons, in float32, with completions of several lengths."""
    sizes = {
        "vit": "ti",
        "image_size": 128,
        "vocab_size": 3000,
        "length": 160,
        "images": 8,
        "num_generations": 4,
    } | sizes
    return Workload(**{**sizes, "device": args.device, **(TINY if args.tiny else {})})


def machine(args: GpuCheckArguments) -> dict:
    found: dict[str, Any] = {"torch": torch.__version__, "device": args.device}
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory, GiB": round(properties.total_memory / 2**30, 1)}
    return found


def against_a_cpu(args: GpuCheckArguments) -> dict:
    """Samples from the same uniforms, and their log-probabilities and gradients, here and on a CPU."""
    here = small(args, captions=True)
    there = replace(here, device="cpu")
    model = make_model(here)
    drawn, drawn_there = draw(here, model), draw(there, copy.deepcopy(model).cpu())
    length = min(drawn.completion_ids.shape[-1], drawn_there.completion_ids.shape[-1])
    same = drawn.completion_ids[..., :length].cpu() == drawn_there.completion_ids[..., :length]
    logps, gradient = gradients_of(here, model, drawn.completion_ids)
    logps_there, gradient_there = gradients_of(there, model, drawn.completion_ids)
    difference = ((drawn.per_token_logps - logps) * drawn.completion_mask).abs().max().item()
    found = {
        "completions drawn alike": same.all(-1).float().mean().item(),  # a draw at the border of two ids may differ
        "sampler's logp against the learning pass": difference,
        "logp against a CPU": ((logps.cpu() - logps_there) * drawn.completion_mask.cpu()).abs().max().item(),
        "gradient against a CPU, of its norm": (
            (gradient.cpu() - gradient_there).norm() / gradient_there.norm()
        ).item(),
    }
    assert difference < 1e-4 and found["logp against a CPU"] < 1e-3, found
    assert found["gradient against a CPU, of its norm"] < 1e-3 and found["completions drawn alike"] > 0.9, found
    return found


def draw(workload: Workload, model, seed: int = 0, **how) -> SampledCompletions:
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(workload.images, workload.num_generations, workload.length, generator=generator)
    return sample(
        model,
        pixels(workload),
        workload.num_generations,
        uniforms=table.to(workload.device),
        max_completion_length=workload.length,
        **how,
    )


def graphs_against_eager_steps(args: GpuCheckArguments) -> dict:
    """Replayed decode steps draw the samples of eager steps, with the log-probabilities of the learning pass."""
    if args.device != cuda_graphs.DEVICE:
        raise LeftOut(f"no CUDA graphs on a {args.device}")
    return {
        decoder: graphs_of(small(args, decoder=decoder, captions=True), rollouts=3)
        for decoder in ("vision_rl", "gpt2")
    }


def graphs_of(workload: Workload, rollouts: int) -> dict:
    model = make_model(workload)
    alike, difference = [], 0.0
    for seed in range(rollouts):
        drawn, eager = draw(workload, model, seed), draw_eagerly(workload, model, seed)
        alike.append(torch.equal(drawn.completion_ids, eager.completion_ids))
        logps, _ = gradients_of(workload, model, drawn.completion_ids)
        difference = max(difference, ((drawn.per_token_logps - logps) * drawn.completion_mask).abs().max().item())
    runners = [rollout.runner for rollout in kept_writers(model.decoder).kept.values()]
    runs = {"eager": lambda: draw_eagerly(workload, model), "graphs": lambda: draw(workload, model)}
    seconds = in_turns(runs, rollouts, workload.now)
    found = {
        "captured": sum(graph is not None for runner in runners for graph in runner.graphs.values()),
        "rollouts drawn alike": sum(alike) / rollouts,  # masked attention rounds differently: an id may differ
        "sampler's logp against the learning pass": difference,
        "times as fast": ratio(seconds["eager"], seconds["graphs"]),
    }
    assert found["captured"] and CudaGraphRunner.works and any(alike) and difference < 1e-4, found
    return found


def draw_eagerly(workload: Workload, model, seed: int = 0) -> SampledCompletions:
    works, CudaGraphRunner.works = CudaGraphRunner.works, False
    try:
        return draw(workload, model, seed)
    finally:
        CudaGraphRunner.works = works


def bfloat16(args: GpuCheckArguments) -> dict:
    """How far the log-probabilities of sampler and learning pass differ under autocast; decoder frozen and not."""
    workload = replace(small(args, captions=True), dtype="bfloat16")
    model = make_model(workload)
    found = {}
    for name in ("learning", "frozen"):
        model.decoder.requires_grad_(name == "learning")
        with workload.autocast:
            drawn = draw(workload, model)
        logps, _ = gradients_of(workload, model, drawn.completion_ids)
        found[f"sampler's logp against the learning pass, {name}"] = (
            ((drawn.per_token_logps - logps) * drawn.completion_mask).abs().max().item()
        )
    assert max(found.values()) < 0.25, found
    return found


def marked_tests(args: GpuCheckArguments) -> dict:
    """The tests marked `gpu`. Files whose imports are missing count as errors of collection."""
    if args.tiny:
        raise LeftOut("not at this size")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-300:]
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    assert counts.get("passed") and not counts.get("failed"), done.stdout[-2000:]
    return counts


# --- how fast is it? ------------------------------------------------------------------------------------------------


def step(workload: Workload, args: GpuCheckArguments) -> dict:
    """Our step against the scripts': the ratio of times, and peak memory beyond weights, optimiser state and images."""
    model = make_model(workload)
    scripts = make_scripts(workload, model, ("naive", "competent"))
    times = step_times(workload, model, scripts, args.rounds)
    found: dict[str, Any] = {
        **workload.describe(),
        "ours, s": times.seconds(OURS),
        "sampling, s": times.seconds(OURS, "sample"),
        "learning, s": times.seconds(OURS, "learn"),
    }
    peaks = step_peaks(workload, model, scripts)
    found["peak memory, MiB"] = peaks[OURS].mib
    for name in scripts:
        found[f"times as fast as {name}"] = {part: times.ratio(name, part) for part in ("total", "sample", "learn")}
        found[f"memory, share of {name}"] = peaks[OURS].bytes / peaks[name].bytes
    return found


def limits(workload: Workload, args: GpuCheckArguments) -> dict:
    """The share of the copy bandwidth that decoding reaches, and that of the matrix rate that learning reaches."""
    options = RooflineArguments(copied_mib=1, matrix_size=64, rounds=1) if args.tiny else RooflineArguments(rounds=2)
    rows = roofline(workload, options)
    return {row["part"]: {key: row[key] for key in ("reached", "limit", "unit", "share")} for row in rows}


if __name__ == "__main__":
    (arguments,) = HfArgumentParser(GpuCheckArguments).parse_args_into_dataclasses()
    outcome = main(arguments)
    sys.exit(any(result["status"] == "failed" for result in outcome.values()))
