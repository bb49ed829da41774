"""Tiny models, processors and data sets that are made in memory, so that no test needs the network."""

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    MBartConfig,
    PreTrainedModel,
    RobertaConfig,
    SiglipVisionConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from vision_rl.compatibility import CHECKPOINTING
from vision_rl.models import VisionDecoderConfig, VisionDecoderForCausalLM, vision_encoder_decoder, vit_encoder
from vision_rl.processing import TextProcessor
from vision_rl.tasks.ocr import character_tokenizer


WIDTH, SIZE = 32, 32
START, END = 0, 1  # ids of the character tokenizer, whose padding starts the decoder


def tiny_model(
    decoder: str = "ours",
    vocab_size: int = 6,
    end: int | None = END,
    seed: int = 0,
    sharp: float = 0.0,
    length: int = 16,
) -> VisionEncoderDecoderModel:
    """An image encoder of 32 px with a decoder of any kind. `sharp` scales the head, so that some tokens are likelier."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": length,
    }
    bart_sizes = {
        "vocab_size": vocab_size,
        "d_model": WIDTH,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": length,
    }
    if decoder == "ours":
        model = vision_encoder_decoder(
            vit_encoder(
                SIZE,
                patch_size=16,
                hidden_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
            ),
            VisionDecoderForCausalLM(VisionDecoderConfig(**sizes)),
            decoder_start_token_id=START,
            pad_token_id=START,
            eos_token_id=end,
        )
        torch.nn.init.normal_(model.decoder.get_output_embeddings().weight, std=max(sharp, 0.05))
    else:
        config = {
            "gpt2": GPT2Config(vocab_size=vocab_size, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=length),
            "bert": BertConfig(**sizes),
            "roberta": RobertaConfig(**sizes, pad_token_id=START),
            "trocr": TrOCRConfig(**bart_sizes),
            # in these the length of a cache follows `encoder_layers`, and end tokens must not be forced
            "bart": BartConfig(**bart_sizes, encoder_layers=2, forced_eos_token_id=None),
            "mbart": MBartConfig(**bart_sizes, encoder_layers=2, forced_eos_token_id=None),
        }[decoder]
        encoder = ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIZE,
            patch_size=16,
        )
        model = VisionEncoderDecoderModel(
            config=VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, config)
        )
        for holder in (model.config, model.generation_config):
            holder.decoder_start_token_id, holder.pad_token_id, holder.eos_token_id = START, START, end
        if sharp:
            torch.nn.init.normal_(model.decoder.get_output_embeddings().weight, std=sharp)
    return model.eval()


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep no activations for the backward pass, by transformers' own call under the installed version's name."""
    getattr(model, f"{CHECKPOINTING}_enable")()


def siglip_config(**kwargs) -> SiglipVisionConfig:
    return SiglipVisionConfig(vision_use_head=False, **kwargs)


def image_processor(size: int = SIZE) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size})


def text_processor(alphabet: str = "abcd") -> TextProcessor:
    return TextProcessor(image_processor(), character_tokenizer(alphabet))


def tiny_images(count: int, seed: int = 0) -> list[PILImage.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return [PILImage.fromarray(array) for array in pixels]


def text_dataset(count: int = 16, alphabet: str = "abcd", max_length: int = 4, seed: int = 0) -> Dataset:
    """Random pictures, each with a random word of 1 to `max_length` letters."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(alphabet), rng.integers(1, max_length + 1))) for _ in range(count)]
    return Dataset.from_dict(
        {"image": tiny_images(count, seed), "text": words},
        features=Features({"image": Image(), "text": Value("string")}),
    )


def share_of_a(completions, **kwargs) -> list[float]:
    """A reward that needs no label: the share of letters that are 'a'."""
    return [text.count("a") / max(len(text), 1) for text in completions]
