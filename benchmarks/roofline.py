"""How near decoding and learning come to a device's limits: shares of its copy bandwidth and of its matrix rate.

    python benchmarks/roofline.py --vit b --image_size 640 --length 600 --images 32 --dtype bfloat16 --device cuda
    python benchmarks/roofline.py                                       # shares of what a CPU reaches

Decoding: the bytes that a token step has to read (the decoder's weights, and the keys and values of each image and of
the completions so far), over the time of one more token. That time is taken from completions of T and of T/4 tokens.
Learning: three times the operations of one forward with each image encoded once, over the time of the learning pass.
What the pass computes twice counts once. The limits are measured on the same device in the same data type: a copy of a
large tensor (read and written), and a product of two square matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import in_turns, report
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser, VisionEncoderDecoderModel
from turns import OURS, pixels, step_times
from workload import Workload, make_model

from vision_rl.models.sampling import sample
from vision_rl.models.shared_images import share_images


@dataclass
class RooflineArguments:
    copied_mib: int = 512
    matrix_size: int | None = None  # None: 8192 on a GPU, 1024 on a CPU
    rounds: int = 5


def fastest(run: Callable[[], object], rounds: int, workload: Workload) -> float:
    return min(in_turns({"run": run}, rounds, workload.now)["run"])


def copy_rate(workload: Workload, args: RooflineArguments) -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.ones(args.copied_mib * 2**20 // 4, device=workload.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / fastest(lambda: target.copy_(source), args.rounds, workload)


def matrix_rate(workload: Workload, args: RooflineArguments) -> float:
    """Operations a second of a matrix product."""
    size = args.matrix_size or (1024 if workload.device == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=workload.device, dtype=getattr(torch, workload.dtype))
    return 2 * size**3 / fastest(lambda: a @ b, args.rounds, workload)


def decoding_bytes(workload: Workload, model: VisionEncoderDecoderModel, num_image_tokens: int) -> float:
    """The bytes that one token step has to read, on average over the last three quarters of a completion."""
    itemsize = getattr(torch, workload.dtype).itemsize
    unread = {"embed_tokens.weight", "embed_positions.weight"}  # only one row for each completion is read
    weights = sum(
        weight.numel()
        for name, weight in model.decoder.named_parameters()
        if name not in unread and not name.endswith(("cross_attn.k_proj.weight", "cross_attn.v_proj.weight"))
    )
    config = model.decoder.config
    of_a_token = 2 * config.num_hidden_layers * config.hidden_size  # a key and a value in each layer
    images = workload.images * num_image_tokens * of_a_token
    mean_past = (workload.length + workload.length // 4) / 2
    completions = workload.images * workload.num_generations * mean_past * of_a_token
    return itemsize * (weights + images + completions)


def learning_operations(workload: Workload, model: nn.Module, pixel_values: torch.Tensor) -> int:
    """The operations of a forward and of a backward, which takes twice as many."""
    share_images(model)
    rows = workload.images * workload.num_generations
    ids = torch.zeros((rows, workload.length), dtype=torch.long, device=workload.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=pixel_values, decoder_input_ids=ids, use_cache=False)
    return 3 * counter.get_total_flops()


def main(workload: Workload, args: RooflineArguments) -> list[dict]:
    if workload.decoder != "vision_rl" or workload.captions or workload.length < 8:
        raise ValueError("The floors are counted for our decoder, completions of full length, 8 tokens or more.")
    torch.set_num_threads(workload.threads)
    model, pixel_values = make_model(workload), pixels(workload)
    with torch.no_grad():
        encoded = model.encoder(pixel_values=pixel_values).last_hidden_state

    def draw(length: int) -> None:
        with workload.autocast:
            sample(model, None, workload.num_generations, encoder_outputs=encoded, max_completion_length=length)

    short, long = (
        fastest(lambda length=length: draw(length), args.rounds, workload)
        for length in (workload.length // 4, workload.length)
    )
    a_token = (long - short) / (workload.length - workload.length // 4)
    learning = step_times(workload, model, {}, args.rounds).seconds(OURS, "learn")
    read = decoding_bytes(workload, model, encoded.shape[1])
    operations = learning_operations(workload, model, pixel_values)
    bandwidth, rate = copy_rate(workload, args), matrix_rate(workload, args)
    return [
        {
            **workload.describe(),
            "part": part,
            "seconds": seconds,
            "reached": work / seconds / scale,
            "limit": limit / scale,
            "unit": unit,
            "share": work / seconds / limit,
        }
        for part, seconds, work, limit, scale, unit in (
            ("decoding, a token", a_token, read, bandwidth, 1e9, "GB/s"),
            ("learning", learning, operations, rate, 1e12, "TFLOP/s"),
        )
    ]


if __name__ == "__main__":
    report("roofline", main(*HfArgumentParser((Workload, RooflineArguments)).parse_args_into_dataclasses()))
