"""What is sampled and learned in the benchmarks: a model of a given size, images of noise, a reward that costs nothing."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from measuring import Clock, clock_of
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel

from vision_rl import VisionProcessor
from vision_rl.models import VisionDecoderConfig, VisionDecoderForCausalLM, vision_encoder_decoder, vit_encoder


PAD, END = 0, 1  # the pad also starts the decoder
VITS = {"xs": (64, 2, 1), "ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
PATCH_SIZE = 16
CAPTION_LENGTH = 12  # tokens of the middle one; COCO's captions have 10.5 words on average
FIRST_END = 4  # tokens before which a caption hardly ends


@dataclass
class Workload:
    """Sizes of a step, and how its time is taken."""

    vit: Literal["xs", "ti", "s", "b", "l"] = field(
        default="s", metadata={"help": "Encoder, patches of 16; xs is for tests."}
    )
    image_size: int = 224
    decoder: Literal["vision_rl", "gpt2"] = "vision_rl"
    decoder_layers: int = 6
    vocab_size: int = 1100
    length: int = field(default=64, metadata={"help": "T: most tokens of a completion."})
    num_generations: int = field(default=2, metadata={"help": "G: completions an image."})
    images: int = field(default=4, metadata={"help": "B: images a step."})
    captions: bool = field(default=False, metadata={"help": "Completions end as captions do, after 12 tokens or so."})
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int = 1
    clock: Literal["cpu", "wall"] = field(
        default="cpu", metadata={"help": "CPU time of the process, or wall time; on a GPU always wall time."}
    )
    seed: int = 0

    def __post_init__(self):
        if self.clock == "cpu" and self.threads > 1:
            raise ValueError("CPU time adds up threads: take --clock wall with more than one.")

    @property
    def now(self) -> Clock:
        return clock_of(self.device, self.clock)

    @property
    def autocast(self) -> torch.autocast:
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def describe(self) -> dict[str, object]:
        """The columns of a table that say what was measured."""
        lengths = "captions" if self.captions else "full"
        return {
            "model": f"{self.vit}@{self.image_size}, {self.decoder} {self.decoder_layers}x{VITS[self.vit][0]}",
            "V": self.vocab_size,
            "B": self.images,
            "G": self.num_generations,
            "T": self.length,
            "lengths": lengths,
            "on": f"{self.device}, {self.dtype}, {self.threads} threads, {self.clock} time",
        }


class NoiseProcessor(VisionProcessor):
    """Pixels to [-1, 1]; completions stay ids."""

    def __call__(self, images, seeds=None, **targets) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3)
        return {"pixel_values": pixels.movedim(-1, 1).float() / 127.5 - 1}

    def batch_decode(self, sequences, **kwargs) -> list:
        return list(sequences)


def share_of_sevens(completion_ids, **kwargs) -> list[float]:
    """The share of ids that 7 divides: a reward that differs among samples and takes no time."""
    return [sum(token % 7 == 0 for token in ids) / len(ids) for ids in completion_ids]


def noise_images(workload: Workload) -> list[dict]:
    """The rows of the data set: one step's images."""
    rng = np.random.default_rng(workload.seed)
    shape = (workload.image_size, workload.image_size, 3)
    return [{"image": rng.integers(0, 256, shape, dtype=np.uint8)} for _ in range(workload.images)]


def make_model(workload: Workload) -> VisionEncoderDecoderModel:
    """New weights; a decoder as wide as its encoder, without dropout."""
    torch.manual_seed(workload.seed)
    width, layers, heads = VITS[workload.vit]
    encoder = vit_encoder(workload.image_size, PATCH_SIZE, width, layers, heads, 4 * width)
    decoder: VisionDecoderForCausalLM | GPT2LMHeadModel
    if workload.decoder == "vision_rl":
        decoder = VisionDecoderForCausalLM(
            VisionDecoderConfig(
                vocab_size=workload.vocab_size,
                hidden_size=width,
                num_hidden_layers=workload.decoder_layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                max_position_embeddings=workload.length + 1,
            )
        )
        torch.nn.init.normal_(decoder.lm_head.weight, std=0.02)  # as GPT-2's; a new one of ours is zero
    else:
        decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=workload.vocab_size,
                n_positions=workload.length + 1,
                n_embd=width,
                n_layer=workload.decoder_layers,
                n_head=heads,
                add_cross_attention=True,
                tie_word_embeddings=False,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=PAD,
                eos_token_id=None,
            )
        )
    model = vision_encoder_decoder(encoder, decoder, PAD, PAD, END if workload.captions else None)
    if workload.captions:
        end_like_captions(model)
    return model.to(workload.device).eval()


@torch.no_grad()
def end_like_captions(model: VisionEncoderDecoderModel) -> None:
    """Sets weights so that the model itself ends its sentences after 12 tokens or so, give or take two.

    No sampler is forced to anything, so that all draw lengths of the same distribution, at no cost, and learn from the
    log-probabilities that they have drawn with. One number of the position embeddings grows with the position; the end
    token's row of the head reads it.
    """
    decoder, end = model.decoder, model.generation_config.eos_token_id
    gpt2 = isinstance(decoder, GPT2LMHeadModel)
    positions = decoder.transformer.wpe if gpt2 else decoder.embed_positions
    norm, head = decoder.transformer.ln_f if gpt2 else decoder.layer_norm, decoder.get_output_embeddings()
    size, length = model.encoder.config.image_size, min(CAPTION_LENGTH, len(positions.weight))
    ids = torch.randint(2, head.out_features, (8, length))
    pixel_values = torch.randn(8, 3, size, size)
    seen: dict[nn.Module, torch.Tensor] = {}  # what enters the last norm and the head

    def look() -> None:
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
            for module in (norm, head)
        ]
        model.eval()(pixel_values=pixel_values, decoder_input_ids=ids)
        for hook in hooks:
            hook.remove()

    look()
    quarter = seen[norm].norm(dim=-1).mean() / 4  # small beside the rest, so that the norm hardly bends it
    steps = torch.arange(len(positions.weight), dtype=torch.float32) - FIRST_END
    positions.weight[:, 0] = steps / (CAPTION_LENGTH - FIRST_END) * quarter
    look()
    head.weight[:, 0] = 0
    head.weight[end] = 0
    # as likely at that length as all other tokens together
    head.weight[end, 0] = math.log(head.out_features) / seen[head][:, -1, 0].mean()
