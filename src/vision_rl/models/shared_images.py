"""Let the G completions about an image share one copy of the image, in transformers' own decoders too.

Cross-attention treats each query by itself, so the tokens about an image may be one row of G*T queries instead of G
rows of T queries. Hooks give the cross-attention modules of a decoder their input in this shape, B rows instead of
B*G, and the rest of transformers' code runs unchanged. Keys and values are then projected, cached and read once an
image, both in sampling and in training. Nothing changes if each row has its own image.
"""

import logging
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from vision_rl.models.decoder import VisionDecoderForCausalLM
from vision_rl.models.served import HeadedDecoder
from vision_rl.models.unwrapping import base_model, decoder_of


logger = logging.getLogger(__name__)

# The names of cross-attention modules: of BERT, GPT-2 and similar models; of BART, mBART and TrOCR; of Pix2Struct.
CROSS_ATTENTION = ("crossattention", "encoder_attn", "encoder_decoder_attention")
MASKS_EVERY_ROW = ("big_bird",)  # BigBird gives cross-attention a mask of B*G rows, whether one is needed or not


def share_images(model: PreTrainedModel | PeftModel) -> None:
    """Let `model(pixel_values (B, ...), decoder_input_ids (B*G, T))` work: an image is encoded once for its G rows.

    Training stays one forward call of the whole model, as DDP, DeepSpeed and FSDP need. A `VisionDecoderForCausalLM`
    reads an image once for its G rows without help; transformers' decoders get hooks. A second call changes nothing.
    """
    share_images_of(decoder_of(base_model(model)))


def share_images_of(decoder: PreTrainedModel) -> None:
    """Let `decoder` take B images with B*G rows of tokens, the G rows of an image adjacent.

    A `VisionDecoderForCausalLM` does so without help. A decoder whose cross-attention is unknown to this module gets
    its images repeated, and a warning is logged. A second call changes nothing.
    """
    if isinstance(decoder, VisionDecoderForCausalLM):
        return
    masked = decoder.decoder if isinstance(decoder, HeadedDecoder) else decoder  # it takes encoder_attention_mask
    if _mask_images not in masked._forward_pre_hooks.values():
        masked.register_forward_pre_hook(_mask_images, with_kwargs=True)
    for attention in _cross_attentions(decoder):
        if _merge_rows_of_image not in attention._forward_pre_hooks.values():
            attention.register_forward_pre_hook(_merge_rows_of_image, with_kwargs=True)
            attention.register_forward_hook(_split_rows_of_image)
    if not reads_images_once(decoder) and _repeat_images not in decoder._forward_pre_hooks.values():
        logger.warning(
            "The cross-attention of %s is not known to vision_rl: it reads each image once for every completion, "
            "which takes more time and memory.",
            type(decoder).__name__,
        )
        decoder.register_forward_pre_hook(_repeat_images, with_kwargs=True)


def reads_images_once(decoder: PreTrainedModel) -> bool:
    """Return whether `decoder`, after `share_images_of`, projects and reads an image once for all its completions."""
    return isinstance(decoder, VisionDecoderForCausalLM) or bool(_cross_attentions(decoder))


def images_for(decoder: PreTrainedModel, images: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return `images (B, N, d)` as `decoder` reads them for `num_rows` completions: each once, or repeated G times."""
    if reads_images_once(decoder) or len(images) == num_rows:
        return images
    return images.repeat_interleave(num_rows // len(images), dim=0)


def _cross_attentions(decoder: PreTrainedModel) -> list[nn.Module]:
    if decoder.config.model_type in MASKS_EVERY_ROW:
        return []
    return [module for name, module in decoder.named_modules() if name.rpartition(".")[2] in CROSS_ATTENTION]


def _merge_rows_of_image(attention: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Reshape tokens `(B*G, T, d)` to queries `(B, G*T, d)`; some decoders pass them by position, others by name."""
    tokens = args[0] if args else kwargs["hidden_states"]
    others = (*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states"))
    images = next(other for other in others if isinstance(other, torch.Tensor) and other.ndim == 3)  # (B, N, d)
    attention.token_shape = None if len(images) == len(tokens) else tokens.shape[:2]
    if attention.token_shape is not None:
        tokens = tokens.reshape(len(images), -1, tokens.shape[-1])
        args, kwargs = ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tokens})
    return args, kwargs


def _split_rows_of_image(attention: Any, args: tuple, output: tuple) -> tuple | None:
    """Reshape the first of the attention's outputs from queries `(B, G*T, d)` back to tokens `(B*G, T, d)`."""
    if attention.token_shape is None:
        return None
    return output[0].reshape(*attention.token_shape, -1), *output[1:]


def _mask_images(decoder: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Reshape a mask `(B, N)` to `(B, 1, 1, N)`, for any number of queries; transformers would make `B*G` rows."""
    images, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
    if images is not None and mask is not None and mask.ndim == 2:
        kwargs["encoder_attention_mask"] = create_bidirectional_mask(
            config=decoder.config, inputs_embeds=images[:, :1], attention_mask=mask, encoder_hidden_states=images
        )
    return args, kwargs


def _repeat_images(decoder: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    images, input_ids = kwargs.get("encoder_hidden_states"), kwargs.get("input_ids")
    if images is not None and input_ids is not None:
        kwargs["encoder_hidden_states"] = images_for(decoder, images, len(input_ids))
    return args, kwargs
