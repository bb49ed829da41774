"""The baseline of the benchmarks: a REINFORCE step as a transformers user writes it today.

`generate(num_return_sequences=G)`, a reward, leave-one-out advantages, one teacher-forced pass with a log-softmax over
all logits `(B*G, T, V)`, backward, AdamW. In the learning pass "naive" encodes each image G times; "competent" encodes
it once and repeats the encoder's output. Nothing else differs between the two.
"""

import copy
import importlib.util
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput
from workload import Workload, end_like_captions, share_of_sevens


@dataclass
class Script:
    """A training script with its own copy of the weights. `step` returns the seconds of its parts."""

    workload: Workload
    model: VisionEncoderDecoderModel
    encodes_once: bool
    optimizer: torch.optim.Optimizer = field(init=False)
    config: GenerationConfig = field(init=False)

    def __post_init__(self):
        self.model = copy.deepcopy(self.model).train()
        # lr=0 does the same work, and the weights stay equal to those of the other scripts
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        self.config = GenerationConfig(
            max_new_tokens=self.workload.length,
            do_sample=True,
            top_k=0,  # the default of 50 would sample from another distribution
            num_return_sequences=self.workload.num_generations,
            decoder_start_token_id=self.model.generation_config.decoder_start_token_id,
            pad_token_id=self.model.generation_config.pad_token_id,
            eos_token_id=self.model.generation_config.eos_token_id,
        )

    def step(self, pixel_values: Tensor) -> dict[str, float]:
        now, times = self.workload.now, [self.workload.now()]
        with torch.no_grad(), self.workload.autocast:
            ids = self.model.generate(pixel_values=pixel_values, generation_config=self.config)[:, 1:].clone()
        mask = mask_of(ids, self.config.eos_token_id)
        times.append(now())
        completions = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1), strict=True)]
        rewards = torch.tensor(share_of_sevens(completions)).to(ids.device)
        times.append(now())
        self.loss(pixel_values, ids, mask, rewards).backward()
        times.append(now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(now())
        names = ("sample", "reward", "learn", "optimizer")
        parts = {name: times[i + 1] - times[i] for i, name in enumerate(names)}
        return {**parts, "total": times[-1] - times[0], "tokens": ids.shape[1]}

    def loss(self, pixel_values: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
        """The mean over the samples `ids (B*G, T)` of -advantage * log p."""
        with self.workload.autocast:
            logps = self.log_probabilities(pixel_values, ids)
        rewards = rewards.view(-1, self.workload.num_generations)
        others = (rewards.sum(1, keepdim=True) - rewards) / (self.workload.num_generations - 1)
        advantages = (rewards - others).flatten()
        return -(advantages[:, None] * logps * mask).sum() / len(ids)

    def log_probabilities(self, pixel_values: Tensor, ids: Tensor) -> Tensor:
        """`(B*G, T)`: the log-probability of each of `ids (B*G, T)`, given the ids before it."""
        starts = torch.full_like(ids[:, :1], self.config.decoder_start_token_id)
        inputs: dict[str, Any] = {"decoder_input_ids": torch.cat([starts, ids[:, :-1]], dim=1), "use_cache": False}
        if self.encodes_once:
            encoded = self.model.encoder(pixel_values=pixel_values).last_hidden_state
            encoded = encoded.repeat_interleave(self.workload.num_generations, dim=0)
            logits = self.model(encoder_outputs=BaseModelOutput(encoded), **inputs).logits
        else:
            pixel_values = pixel_values.repeat_interleave(self.workload.num_generations, dim=0)
            logits = self.model(pixel_values=pixel_values, **inputs).logits
        return logits.float().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def mask_of(ids: Tensor, end: int | None) -> Tensor:
    """1 up to and including the first end token of `ids (R, T)`."""
    ended = ids == end if end is not None else torch.zeros_like(ids, dtype=torch.bool)
    return (ended.cumsum(1) - ended.long() == 0).long()


class OutsideScript:
    """Somebody else's script: a file with `get_args`, `setup`, `make_batch`, `step` and `LOGPROBS`.

    The script makes the model; `model` is a copy of it, so that our trainer has the same weights. The script may force
    the lengths of captions. Our trainer forces nothing, so the weights are set to end captions at about these lengths.
    """

    def __init__(self, path: str, implementation: str, workload: Workload):
        spec: Any = importlib.util.spec_from_file_location("outside_script", path)
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        options = {
            "impl": implementation,
            "vit": workload.vit,
            "image-size": workload.image_size,
            "dec-layers": workload.decoder_layers,
            "vocab": workload.vocab_size,
            "T": workload.length,
            "k": workload.num_generations,
            "batch": workload.images,
            "lengths": "caption" if workload.captions else "full",
            "device": workload.device,
            "dtype": {"float32": "fp32", "bfloat16": "bf16"}[workload.dtype],
            "seed": workload.seed,
        }
        # the decoder is as wide as the encoder, like that of `make_model`
        options["dec-width"] = self.module.VITS[workload.vit][0]
        given, sys.argv = sys.argv, [path, *(f"--{name}={value}" for name, value in options.items())]
        try:
            self.args = self.module.get_args()
        finally:
            sys.argv = given
        self.workload = workload
        self.args.cpu_time = workload.clock == "cpu"
        self.state = self.module.setup(self.args)
        self.log_probabilities_of = self.module.LOGPROBS[implementation]
        if workload.captions:
            end_like_captions(self.state["model"])
        self.model = copy.deepcopy(self.state["model"]).eval()
        if not workload.captions:
            self.model.config.eos_token_id = None  # its generation config has no end token either
        self.generator = torch.Generator().manual_seed(workload.seed)

    def step(self, pixel_values: Tensor) -> dict[str, float]:
        _, lengths = self.module.make_batch(self.args, self.generator)
        parts, _ = self.module.step(self.state, self.args, pixel_values, lengths)
        return {**parts, "tokens": int(lengths.max())}

    def log_probabilities(self, pixel_values: Tensor, ids: Tensor) -> Tensor:
        """The same as `Script.log_probabilities`."""
        return self.log_probabilities_of(self.state["model"], pixel_values, ids, self.workload.num_generations)
