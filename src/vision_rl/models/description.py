"""Make a model from a description: named sizes or single numbers for encoder and decoder, new or from a folder."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, VisionEncoderDecoderModel

from vision_rl.models.decoder import VisionDecoderConfig, VisionDecoderForCausalLM
from vision_rl.models.encoder import load_encoder, resize_position_embeddings, vision_encoder_decoder, vit_encoder
from vision_rl.models.uvim import load_big_vision_vit


# The four numbers of each entry of `SIZES`; all have patches of 16 pixels.
_NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES = {
    "vit-ti16": (192, 12, 3, 768),
    "vit-s16": (384, 12, 6, 1536),
    "vit-b16": (768, 12, 12, 3072),
    "vit-l16": (1024, 24, 16, 4096),
}


def transformer_size(name: str, **numbers: int | None) -> dict[str, int]:
    """Return the four numbers of a transformer: the numbers of `name` in `SIZES`, replaced by any in `numbers`.

    Raises:
        ValueError: for an unknown name, for a number below 1, and for a `hidden_size` that is no multiple of the
            number of attention heads.
    """
    if name not in SIZES:
        raise ValueError(
            f"There is no size {name!r}; there are {', '.join(SIZES)}. Single numbers, such as hidden_size, replace those of "
            "the size."
        )
    size = dict(zip(_NUMBERS, SIZES[name], strict=True)) | {key: n for key, n in numbers.items() if n is not None}
    wrong = [key for key, number in size.items() if number < 1]
    if wrong:
        raise ValueError(f"{wrong[0]} is {size[wrong[0]]}; it must be positive.")
    if size["hidden_size"] % size["num_attention_heads"]:
        raise ValueError(
            f"hidden_size {size['hidden_size']} cannot be split among {size['num_attention_heads']} attention heads: choose "
            "a multiple of num_attention_heads."
        )
    return size


def make_encoder(
    image_size: int,
    size: dict[str, int],
    patch_size: int = 16,
    conv_stem: bool = False,
    init: str | PathLike | None = None,
    num_hidden_layers: int | None = None,
) -> PreTrainedModel:
    """Make a new ViT of a given size, or load the encoder in `init`, for images of `image_size` x `image_size` pixels.

    Args:
        image_size: height and width of the images in pixels.
        size: the result of `transformer_size`, for a new encoder.
        patch_size: the patch size of a new encoder.
        conv_stem: whether a new encoder has a convolutional stem; see `vit_encoder`.
        init: the file (npz) of a ViT of big_vision; the folder or Hub name of a SigLIP, ViT or DINOv2 model; or that
            of a `VisionEncoderDecoderModel`, whose encoder is taken.
        num_hidden_layers: how many of the first layers of a SigLIP, ViT or DINOv2 model in `init` are kept; ignored
            for other models.

    Raises:
        FileNotFoundError: for an npz file that does not exist.
    """
    if init is None:
        return vit_encoder(image_size, patch_size, conv_stem=conv_stem, **size)
    if str(init).endswith(".npz"):
        if not Path(init).is_file():
            raise FileNotFoundError(f"There is no file {init} with an encoder.")
        return load_big_vision_vit(init, image_size)
    if AutoConfig.from_pretrained(init).model_type == "vision-encoder-decoder":
        encoder = VisionEncoderDecoderModel.from_pretrained(init, dtype=torch.float32).encoder
        resize_position_embeddings(encoder, image_size)
        return encoder
    return load_encoder(init, image_size, num_hidden_layers=num_hidden_layers)


def make_decoder(
    vocab_size: int,
    length: int,
    size: dict[str, int],
    cross_attention_hidden_size: int | None = None,
    init: str | PathLike | None = None,
) -> PreTrainedModel:
    """Make a new decoder of the paper's kind, or load a pretrained decoder from `init`.

    A pretrained text model keeps its first `size["num_hidden_layers"]` layers.

    Args:
        vocab_size: number of tokens.
        length: number of tokens of the longest completion.
        size: the result of `transformer_size`.
        cross_attention_hidden_size: the encoder's width, if it differs from the decoder's.
        init: the folder or Hub name of a BERT, RoBERTa or GPT-2, or of a `VisionEncoderDecoderModel`, whose decoder is
            taken.

    Raises:
        ValueError: if the decoder in `init` has fewer tokens than `vocab_size` or fewer positions than `length`.
    """
    if init is None:
        width = None if cross_attention_hidden_size == size["hidden_size"] else cross_attention_hidden_size
        sizes: dict[str, Any] = {**size, "vocab_size": vocab_size, "max_position_embeddings": length}
        return VisionDecoderForCausalLM(VisionDecoderConfig(**sizes, cross_attention_hidden_size=width))
    if AutoConfig.from_pretrained(init).model_type == "vision-encoder-decoder":
        decoder = VisionEncoderDecoderModel.from_pretrained(init, dtype=torch.float32).decoder
    else:
        of_decoder = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": size["num_hidden_layers"]}
        decoder = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32, **of_decoder)
    if decoder.config.vocab_size < vocab_size:
        raise ValueError(
            f"The processor has {vocab_size} tokens, but the decoder of {init} has only {decoder.config.vocab_size}: take the "
            "tokenizer of that decoder, or a new decoder."
        )
    positions = getattr(decoder.config, "max_position_embeddings", length)
    if positions < length:
        raise ValueError(
            f"A completion has up to {length} tokens, but the decoder of {init} has only {positions} positions: take a decoder "
            "with more, or shorter completions."
        )
    return decoder


def make_model(processor: Any, encoder: PreTrainedModel, decoder: PreTrainedModel) -> VisionEncoderDecoderModel:
    """Join encoder and decoder to one model with the special ids of the processor's tokenizer.

    A sequence starts with the tokenizer's bos token, else with its padding token, else with 0. The padding is 0 if the
    tokenizer has no padding token, and nothing ends a sequence if the tokenizer has no end token.
    """
    ids = processor.tokenizer
    start = ids.bos_token_id if ids.bos_token_id is not None else ids.pad_token_id
    model = vision_encoder_decoder(
        encoder,
        decoder,
        decoder_start_token_id=start or 0,
        pad_token_id=ids.pad_token_id or 0,
        eos_token_id=ids.eos_token_id,
    )
    model.generation_config.suppress_tokens = list(processor.suppress_tokens) or None
    return model


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
