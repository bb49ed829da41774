"""What the benchmarks sample and learn: a model of a given size, images of noise, a reward that costs nothing."""

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


PAD, END = 0, 1  # the padding also starts the decoder
VITS = {"xs": (64, 2, 1), "ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
PATCH_SIZE = 16
CAPTION_LENGTH = 12  # tokens of a median caption; COCO's captions have 10.5 words on average
FIRST_END = 4  # before so many tokens a caption hardly ever ends


@dataclass
class Workload:
    """The sizes of a step, and how its time is taken."""

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
        """The columns of a table that describe the workload."""
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
    """Scales pixels to [-1, 1]; completions are not decoded."""

    def __call__(self, images, seeds=None, **targets) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3)
        return {"pixel_values": pixels.movedim(-1, 1).float() / 127.5 - 1}

    def batch_decode(self, sequences, **kwargs) -> list:
        return list(sequences)


def share_of_sevens(completion_ids, **kwargs) -> list[float]:
    """The share of ids that 7 divides: a reward that differs between samples and takes no time."""
    return [sum(token % 7 == 0 for token in ids) / len(ids) for ids in completion_ids]


def noise_images(workload: Workload) -> list[dict]:
    """The rows of the data set: the images of one step."""
    rng = np.random.default_rng(workload.seed)
    shape = (workload.image_size, workload.image_size, 3)
    return [{"image": rng.integers(0, 256, shape, dtype=np.uint8)} for _ in range(workload.images)]


def make_model(workload: Workload) -> VisionEncoderDecoderModel:
    """A model with new weights, without dropout, whose decoder is as wide as its encoder."""
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
        torch.nn.init.normal_(decoder.lm_head.weight, std=0.02)  # as in GPT-2; a new head of ours is zero
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
    """Sets weights so that the model itself ends its completions after about 12 tokens, give or take two.

    No sampler is forced to anything. So all of them draw lengths from the same distribution, at no cost, and learn
    with the log-probabilities of their own draws. It works by one number of the position embeddings, which grows with
    the position and which the end token's row of the head reads.
    """
    decoder, end = model.decoder, model.generation_config.eos_token_id
    gpt2 = isinstance(decoder, GPT2LMHeadModel)
    positions = decoder.transformer.wpe if gpt2 else decoder.embed_positions
    norm, head = decoder.transformer.ln_f if gpt2 else decoder.layer_norm, decoder.get_output_embeddings()
    size, length = model.encoder.config.image_size, min(CAPTION_LENGTH, len(positions.weight))
    ids = torch.randint(2, head.out_features, (8, length))
    pixel_values = torch.randn(8, 3, size, size)
    seen: dict[nn.Module, torch.Tensor] = {}  # the inputs of the last norm and of the head

    def look() -> None:
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
            for module in (norm, head)
        ]
        model.eval()(pixel_values=pixel_values, decoder_input_ids=ids)
        for hook in hooks:
            hook.remove()

    look()
    quarter = seen[norm].norm(dim=-1).mean() / 4  # small beside the other numbers, so that the norm hardly changes it
    steps = torch.arange(len(positions.weight), dtype=torch.float32) - FIRST_END
    positions.weight[:, 0] = steps / (CAPTION_LENGTH - FIRST_END) * quarter
    look()
    head.weight[:, 0] = 0
    head.weight[end] = 0
    # at CAPTION_LENGTH the end is as likely as all other tokens together
    head.weight[end, 0] = math.log(head.out_features) / seen[head][:, -1, 0].mean()
