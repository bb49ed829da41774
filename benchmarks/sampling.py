"""Our sampler against `generate(num_return_sequences=G)`: the decode loop alone, and together with the encoder.

    python benchmarks/sampling.py --figures       # 1024 image tokens and smaller ones, on a CPU
    python benchmarks/sampling.py --vit b --image_size 640 --length 600 --images 32 --dtype bfloat16 --device cuda

Both draw G completions for each image from softmax(logits), in turns in one process. Ours also keeps the
log-probabilities; they are compared with those of a teacher-forced pass over the same ids (1e-5 in float32). The
decode loop starts from encoded images. Memory is that of the whole call beyond weights and images.
"""

from dataclasses import dataclass, field, replace

import torch
from baselines import Script, mask_of
from measuring import in_turns, peak_memory, ratio, report
from transformers import HfArgumentParser
from transformers.modeling_outputs import BaseModelOutput
from turns import LOGP_TOLERANCE, pixels
from workload import Workload, make_model

from vision_rl.models.sampling import sample


FIGURES = (
    {"image_size": 512, "images": 1, "num_generations": 8, "length": 48},  # 1024 image tokens
    {"image_size": 512, "images": 2, "num_generations": 8, "length": 48},
    {"images": 4, "num_generations": 2, "length": 64},
    {"images": 4, "num_generations": 8, "length": 32, "vocab_size": 30_000},
    {"images": 4, "num_generations": 8, "length": 64, "vocab_size": 30_000, "captions": True},
)


@dataclass
class SamplingArguments:
    figures: bool = field(default=False, metadata={"help": "1024 image tokens with G=8, and smaller ones."})
    rounds: int = 5
    memory: bool = True


def compare(workload: Workload, args: SamplingArguments) -> dict:
    script = Script(workload, make_model(workload), encodes_once=True)
    model, pixel_values = script.model.eval(), pixels(workload)
    with torch.no_grad():
        encoded = model.encoder(pixel_values=pixel_values).last_hidden_state

    def ours(**images):
        with workload.autocast:
            return sample(
                model, num_generations=workload.num_generations, max_completion_length=workload.length, **images
            )

    def generate(**images):
        with torch.no_grad(), workload.autocast:
            return model.generate(generation_config=script.config, **images)

    ids, _, logps = (
        values.flatten(0, 1)
        for values in sample(model, pixel_values, workload.num_generations, max_completion_length=workload.length)
    )  # without autocast, so in float32
    with torch.no_grad():
        expected = replace(script, workload=replace(workload, dtype="float32")).log_probabilities(pixel_values, ids)
    difference = ((expected - logps) * mask_of(ids, script.config.eos_token_id)).abs().max().item()
    assert difference <= LOGP_TOLERANCE, f"log-probabilities differ by {difference:.1e}"

    runs = {
        "loop": lambda: ours(encoder_outputs=encoded),
        "generate's loop": lambda: generate(encoder_outputs=BaseModelOutput(encoded)),
        "whole": lambda: ours(pixel_values=pixel_values),
        "generate": lambda: generate(pixel_values=pixel_values),
    }
    seconds = in_turns(runs, args.rounds, workload.now)
    peaks = {}
    for name in ("whole", "generate") if args.memory else ():
        with peak_memory(workload.device) as peaks[name]:
            runs[name]()
    return {
        **workload.describe(),
        "image tokens": encoded.shape[1],
        "loop": ratio(seconds["generate's loop"], seconds["loop"]),
        "whole": ratio(seconds["generate"], seconds["whole"]),
        "loop, s": min(seconds["loop"]),
        "memory, MiB": peaks["whole"].mib if peaks else None,
        "memory, share": peaks["whole"].bytes / peaks["generate"].bytes if peaks else None,
        "logp differs by": difference,
    }


def main(workload: Workload, args: SamplingArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    workloads = [replace(workload, **figure) for figure in FIGURES] if args.figures else [workload]
    return [compare(each, args) for each in workloads]


if __name__ == "__main__":
    report("sampling", main(*HfArgumentParser((Workload, SamplingArguments)).parse_args_into_dataclasses()))
