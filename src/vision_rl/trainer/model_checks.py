"""Whether a model can read the images and write what its processor reads, found out before training."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from vision_rl.models.lengths import completion_length, num_positions
from vision_rl.models.special_ids import SpecialIds, special_ids
from vision_rl.models.unwrapping import base_model, decoder_of, is_served
from vision_rl.processing import VisionProcessor


def check_model(model: nn.Module, processor: VisionProcessor, max_completion_length: int | None) -> None:
    """A decoder with cross-attention, its special ids, a vocabulary and positions that suffice."""
    policy = base_model(model)
    ids = special_ids(policy)
    if not is_served(policy):
        return
    decoder = decoder_of(policy)
    if isinstance(policy, VisionEncoderDecoderModel):
        _check_cross_attention(decoder)
    vocab_size = decoder.config.vocab_size
    if processor.vocab_size is not None and processor.vocab_size > vocab_size:
        owner = "model.decoder" if isinstance(policy, VisionEncoderDecoderModel) else "model"
        raise ValueError(
            f"The processor writes {processor.vocab_size} different ids, but the decoder's vocabulary has only {vocab_size}. "
            f"Build the decoder with vocab_size={processor.vocab_size} or call "
            f"{owner}.resize_token_embeddings({processor.vocab_size})."
        )
    _check_special_ids(ids, vocab_size, processor.tokenizer)
    positions = num_positions(policy)
    length = completion_length(model, max_completion_length)
    if positions is not None and length > positions:
        raise ValueError(
            f"max_completion_length is {length}, but the decoder has only {positions} positions: lower it, or build the "
            "decoder with a larger max_position_embeddings."
        )


def _check_cross_attention(decoder: Any) -> None:
    """Check that the decoder has cross-attention; a `VisionEncoderDecoderModel` takes any decoder."""
    accepts_images = "encoder_hidden_states" in inspect.signature(decoder.forward).parameters
    attends = any("cross" in name or "encoder_attn" in name for name, _ in decoder.named_modules())
    if not (accepts_images and attends):
        raise ValueError(
            f"{type(decoder).__name__} has no cross-attention, so it cannot read the image. Use a decoder that has it, "
            "built with is_decoder=True, add_cross_attention=True: GPT-2, BERT, TrOCR, BART, or "
            "vision_rl.models.VisionDecoderForCausalLM."
        )


def _check_special_ids(ids: SpecialIds, vocab_size: int, tokenizer: Any) -> None:
    """Check that each special id is one of the decoder's ids."""
    named = [("decoder_start_token_id", ids.decoder_start), ("pad_token_id", ids.pad)]
    named += [("eos_token_id", end) for end in ids.ends] + [("suppress_tokens", token) for token in ids.suppressed]
    outside = [(name, value) for name, value in named if value >= vocab_size]
    if not outside:
        return
    (name, value), advice = outside[0], ""
    known = "bos_token_id" if name == "decoder_start_token_id" else name
    of_tokenizer = getattr(tokenizer, known, None)
    if of_tokenizer is not None:
        advice = f" The tokenizer's {known} is {of_tokenizer}."
    raise ValueError(
        f"model.generation_config.{name} has the id {value}, outside of the decoder's vocabulary of {vocab_size}."
        f"{advice} Set it in model.generation_config and in model.config."
    )


def check_encoder(policy: Any, batch: dict[str, Any]) -> None:
    """The encoder of a `VisionEncoderDecoderModel` needs nothing but pixels, and gives tokens `(B, N, d)`, not a map.

    Its forward runs on torch's meta device, which knows shapes alone; an encoder that looks at numbers is not checked.
    """
    if not isinstance(policy, VisionEncoderDecoderModel) or "pixel_values" not in batch:
        return
    encoder: Any = policy.encoder
    pixel_values: Tensor = batch["pixel_values"]
    try:
        inspect.signature(encoder.forward).bind(pixel_values=pixel_values)
    except TypeError as error:
        raise ValueError(
            f"{type(encoder).__name__} cannot be the encoder, which is called with pixel_values only: {error}."
        ) from None
    tensors = {
        name: torch.empty_like(value, device="meta") for name, value in encoder.state_dict(keep_vars=True).items()
    }
    tensors |= {name: torch.empty_like(value, device="meta") for name, value in encoder.named_buffers()}
    inputs = {"pixel_values": pixel_values[:1].to("meta"), "return_dict": True}
    try:
        with torch.no_grad():
            shape = torch.func.functional_call(encoder, tensors, kwargs=inputs).last_hidden_state.shape
    except Exception:
        return
    if len(shape) != 3:
        raise ValueError(
            f"{type(encoder).__name__} gives a map {tuple(shape)}, but a decoder reads tokens (B, N, d): take an encoder "
            "that gives tokens, such as a ViT, SigLIP, DINOv2 or Swin."
        )
