"""What each way to run faster gains on this machine: a table of all the ways that the code has.

    python benchmarks/ways.py                                          # on one core of a CPU
    python benchmarks/ways.py --device cuda --dtype bfloat16 --vit b   # on a GPU

With and without the way the code computes the same. The two take turns in one process; a ratio is the median of the
rounds' ratios, above 1 where the way is faster. Memory is the share of the peak beyond weights: below 1 the way saves
memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measuring import in_turns, peak_memory, ratio, report
from transformers import HfArgumentParser
from turns import pixels
from workload import PAD, Workload, make_model

from vision_rl.models import writer
from vision_rl.models.cast_weights import CastWeights
from vision_rl.models.cuda_graphs import CudaGraphRunner
from vision_rl.models.log_prob_head import FusedHead, label_tokens
from vision_rl.models.sampling import sample
from vision_rl.trainer.losses import mle_loss


@dataclass
class WaysArguments:
    rounds: int = 5


def main(workload: Workload, args: WaysArguments) -> list[dict]:
    torch.set_num_threads(workload.threads)
    small = replace(workload, vit="xs", image_size=32, decoder_layers=2, images=8)
    half = replace(workload, dtype="bfloat16")
    words = replace(workload, vocab_size=30_000, images=16, length=64)
    if workload.vit == "xs":  # a test of this file
        small = half = words = workload
    rows = [
        decoding("packed weights", workload, patch.object(writer, "can_pack", lambda *_: False), args),
        decoding("a step with less Python", workload, patch.object(writer, "is_plain", lambda _: False), args),
        decoding("a step with less Python", small, patch.object(writer, "is_plain", lambda _: False), args),
        decoding("weights cast once a rollout", half, patch.object(CastWeights, "in_place", _cast_never), args, True),
        maximum_likelihood("fused head, MLE", words, args),
        maximum_likelihood("fused head, MLE on a frozen encoder", words, args, frozen=True),
    ]
    if workload.device == "cuda":
        rows.append(decoding("CUDA graphs", half, patch.object(CudaGraphRunner, "works", False), args))
    return rows


def decoding(way: str, workload: Workload, without: Any, args: WaysArguments, frozen: bool = False) -> dict:
    """The decode loop with the way, and without it: inside of the context `without`."""
    model = make_model(workload).requires_grad_(not frozen)
    with torch.no_grad(), workload.autocast:
        images = model.encoder(pixel_values=pixels(workload)).last_hidden_state

    def draw(context: Any) -> None:
        with context, workload.autocast:
            how = {"num_generations": workload.num_generations, "max_completion_length": workload.length}
            sample(model, encoder_outputs=images, **how)

    seconds = in_turns(
        {"with": lambda: draw(nullcontext()), "without": lambda: draw(without)}, args.rounds, workload.now
    )
    return _row(way, workload, seconds, None)


def maximum_likelihood(way: str, workload: Workload, args: WaysArguments, frozen: bool = False) -> dict:
    """A forward and a backward pass of MLE, with the fused head and with whole logits."""
    model = make_model(workload).train()
    model.encoder.requires_grad_(not frozen)
    labels = torch.randint(2, workload.vocab_size, (workload.images, workload.length), device=workload.device)
    inputs: dict[str, Any] = {"pixel_values": pixels(workload), "use_cache": False}
    inputs["decoder_input_ids"] = F.pad(labels[:, :-1], (1, 0), value=PAD)

    def fused() -> torch.Tensor:
        with FusedHead(model.get_output_embeddings()).loss_of(label_tokens(labels)):
            return model(**inputs).logits

    def plain() -> torch.Tensor:
        return mle_loss(model(**inputs).logits, labels).sum()

    def learn(loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        model.zero_grad()
        with workload.autocast:
            value = loss()
        value.backward()
        return value.detach()

    torch.testing.assert_close(learn(fused), learn(plain), rtol=1e-3, atol=0)
    runs = {"with": lambda: learn(fused), "without": lambda: learn(plain)}
    seconds = in_turns(runs, args.rounds, workload.now)
    peaks = {}
    for name, run in runs.items():
        model.zero_grad()
        with peak_memory(workload.device) as peaks[name]:
            run()
    return _row(way, workload, seconds, peaks["with"].bytes / peaks["without"].bytes)


def _row(way: str, workload: Workload, seconds: dict[str, list[float]], memory: float | None) -> dict:
    return {
        "way": way,
        **workload.describe(),
        "times as fast": ratio(seconds["without"], seconds["with"]),
        "seconds": min(seconds["with"]),
        "memory, share": memory,
    }


@contextmanager
def _cast_never(self) -> Iterator[None]:
    """In place of `CastWeights.in_place`: nothing is cast beforehand, so autocast casts when it needs to."""
    yield


if __name__ == "__main__":
    report("ways", main(*HfArgumentParser((Workload, WaysArguments)).parse_args_into_dataclasses()))
