"""Time and memory of the learning pass, against that of the scripts; by default with a vocabulary of 30 000 and G = 8.

    python benchmarks/learning.py
    python benchmarks/learning.py --vit b --image_size 512 --images 32 --length 128 --dtype bfloat16 --device cuda

The pass leads from samples and rewards to gradients: encoder, teacher-forced decoder, log-probabilities, backward. Its
memory is the peak of a whole step beyond weights, optimiser state and images; it includes the gradients, which every
way of learning needs. First a check makes sure that both compute the same.
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from measuring import MIB, report
from torch import Tensor
from transformers import HfArgumentParser, VisionEncoderDecoderModel
from turns import OURS, check_equal, make_scripts, pixels, step_peaks, step_times
from workload import Workload, make_model

from vision_rl.models.log_prob_head import FusedHead, WeightedTokens
from vision_rl.models.shared_images import share_images
from vision_rl.models.special_ids import special_ids


def gradients_of(
    workload: Workload, model: VisionEncoderDecoderModel, completion_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `completion_ids (B, G, T)`, and the decoder's gradient of their mean as one vector.

    Computed with the fused head in a teacher-forced pass of a copy of the model, on the workload's device.
    """
    model = copy.deepcopy(model).to(workload.device)
    model.decoder.requires_grad_(True)
    share_images(model)
    ids = completion_ids.to(workload.device).flatten(0, 1)
    special = special_ids(model)
    rows, positions = torch.ones_like(ids).nonzero(as_tuple=True)
    tokens = WeightedTokens(
        rows, positions, ids.flatten(), torch.full((ids.numel(),), 1 / ids.numel(), device=ids.device)
    )
    head = FusedHead(model.get_output_embeddings(), suppressed=special.suppressed)
    decoder_input_ids = F.pad(ids[:, :-1], (1, 0), value=special.decoder_start)
    with head.loss_of(tokens), workload.autocast:
        loss = model(pixel_values=pixels(workload), decoder_input_ids=decoder_input_ids, use_cache=False).logits
    loss.backward()
    gradients = [weight.grad.flatten() for weight in model.decoder.parameters() if weight.grad is not None]
    return head.logps.view_as(completion_ids), torch.cat(gradients)


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
