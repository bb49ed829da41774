"""The models that the trainers serve, and how each is called with images and, for some models, prompts.

All of these models encode an image once and write tokens about the image by a decoder with cross-attention. So one
sampler and one teacher-forced pass serve all of them. The models differ in where their parts are and in the names of
their arguments. In a batch, `pixel_values` is always the encoder's input from an image, and `prompt_ids` is the prompt
that the encoder reads beside the image.
"""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import (
    BlipForConditionalGeneration,
    Florence2ForConditionalGeneration,
    Pix2StructForConditionalGeneration,
    PreTrainedModel,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING


SERVED: tuple[Any, ...] = (
    VisionEncoderDecoderModel,
    Pix2StructForConditionalGeneration,
    Florence2ForConditionalGeneration,
    BlipForConditionalGeneration,
)
SERVED_CONFIGS: tuple[Any, ...] = tuple(kind.config_class for kind in SERVED)
SERVED_NAMES = (
    "a VisionEncoderDecoderModel (TrOCR, Donut, Nougat, ViT-GPT2, or of vision_rl.models.vision_encoder_decoder), "
    "Pix2StructForConditionalGeneration, Florence2ForConditionalGeneration or BlipForConditionalGeneration"
)
IMAGES = ("pixel_values", "prompt_ids")  # the entries of a batch that an encoder reads
ENCODED = ("encoder_outputs", "encoder_attention_mask")  # the entries that replace them once images are encoded


class HeadedDecoder(nn.Module):
    """A module that joins a decoder and a head that are separate in their model, and returns logits.

    The decoder and the head are the model's own modules, not copies.
    """

    def __init__(self, decoder: Any, head: nn.Module):
        super().__init__()
        self.decoder, self.head, self.config = decoder, head, decoder.config

    def forward(self, **inputs) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.decoder(**inputs).last_hidden_state))


def decoder_part(policy: Any) -> Any:
    """Return the module that computes the logits `(R, T, V)` of tokens `(R, T)` about encoded images."""
    if isinstance(policy, Florence2ForConditionalGeneration):
        return HeadedDecoder(policy.model.language_model.decoder, policy.lm_head)
    return policy.text_decoder if isinstance(policy, BlipForConditionalGeneration) else policy.decoder


def encode(policy: Any, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encode images to `encoder_outputs (B, N, d)`, with `encoder_attention_mask (B, N)` where N may hold padding."""
    pixel_values = images["pixel_values"]
    match policy:
        case Pix2StructForConditionalGeneration():
            mask = patch_mask(pixel_values)
            hidden = policy.encoder(flattened_patches=pixel_values, attention_mask=mask).last_hidden_state
            return {"encoder_outputs": hidden, "encoder_attention_mask": mask}
        case Florence2ForConditionalGeneration():
            ids: Any = images["prompt_ids"]
            mask = prompt_mask(policy, ids)
            embeds = policy.get_input_embeddings()(ids)  # (B, N, d)
            features = policy.get_image_features(pixel_values).pooler_output.to(embeds.dtype)
            embeds = embeds.masked_scatter(policy.get_placeholder_mask(ids, embeds, features), features)
            hidden = policy.model.language_model.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
            return {"encoder_outputs": hidden, "encoder_attention_mask": mask}
        case BlipForConditionalGeneration():
            return {"encoder_outputs": policy.vision_model(pixel_values=pixel_values).last_hidden_state}
        case _:
            return {"encoder_outputs": policy.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state}


def projected(policy: Any, hidden: Tensor) -> Tensor:
    """Return the encoder's output `hidden (B, N, d)` in the width that the decoder's cross-attention reads."""
    hidden = hidden.to(policy.dtype)  # a data set may hold encoder outputs in float32
    if isinstance(policy, VisionEncoderDecoderModel) and projects_images(policy):
        return policy.enc_to_dec_proj(hidden)
    return hidden


def projects_images(policy: VisionEncoderDecoderModel) -> bool:
    """Return whether the model projects the encoder's width to the decoder's, by the condition of its own forward."""
    encoder, decoder = policy.encoder.config, policy.decoder.config
    return encoder.hidden_size != decoder.hidden_size and getattr(decoder, "cross_attention_hidden_size", None) is None


def takes_encoder_outputs(policy: Any) -> bool:
    """Return whether the model's forward accepts the encoder's output; BLIP's forward always begins with pixels."""
    return not isinstance(policy, BlipForConditionalGeneration)


def image_inputs(policy: Any, images: dict[str, Tensor]) -> dict[str, Any]:
    """Return the images of a batch, encoded or not, as arguments of the model's forward."""
    mask = images.get("encoder_attention_mask")
    if "encoder_outputs" in images:
        hidden = images["encoder_outputs"].to(policy.dtype)
        if isinstance(policy, VisionEncoderDecoderModel):
            return {"encoder_outputs": (hidden,)}
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "attention_mask": mask}
    pixel_values = images["pixel_values"]
    if isinstance(policy, Pix2StructForConditionalGeneration):
        return {"flattened_patches": pixel_values, "attention_mask": patch_mask(pixel_values)}
    if isinstance(policy, Florence2ForConditionalGeneration):
        ids = images["prompt_ids"]
        return {"pixel_values": pixel_values, "input_ids": ids, "attention_mask": prompt_mask(policy, ids)}
    return {"pixel_values": pixel_values}


def token_inputs(policy: Any, decoder_input_ids: Tensor) -> dict[str, Any]:
    """Return the decoder's input tokens `(R, T)` as arguments of the model's forward."""
    if isinstance(policy, BlipForConditionalGeneration):
        return {"input_ids": decoder_input_ids}  # BLIP's own forward makes no cache
    return {"decoder_input_ids": decoder_input_ids, "use_cache": False}


def patch_mask(flattened_patches: Tensor) -> Tensor:
    """Return a mask `(B, N)` of Pix2Struct's patches `(B, N, 2 + pixels)`, 0 where a patch is padding.

    The first number of a patch is its row in the image, counted from 1; in padding it is 0.
    """
    return (flattened_patches[..., 0] != 0).long()


def prompt_mask(policy: Any, prompt_ids: Tensor) -> Tensor:
    """Return a mask `(B, N)` of the prompts, 0 where a prompt is padding."""
    return (prompt_ids != policy.config.get_text_config().pad_token_id).long()


def prepare_special_ids(policy: Any) -> None:
    """Copy the start and end ids of BLIP's own `generate` to the generation config, where other models have them."""
    if isinstance(policy, BlipForConditionalGeneration):
        text: Any = policy.config.text_config
        config = policy.generation_config
        config.decoder_start_token_id, config.eos_token_id = text.bos_token_id, text.sep_token_id


# --- other models ---------------------------------------------------------------------------------------------------


def check_served(model: Any) -> None:
    """Raise `TypeError` for a model that the trainers do not serve; the message names the models that are served.

    An encoder-decoder of a user's own is served through its `generate` if its forward takes `pixel_values` and
    `decoder_input_ids`.
    """
    if isinstance(model, SERVED):
        return
    own = isinstance(model, PreTrainedModel) and not type(model).__module__.startswith("transformers.")
    taken = set(inspect.signature(model.forward).parameters) if own and model.can_generate() else set()
    if not {"pixel_values", "decoder_input_ids"} <= taken:
        raise TypeError(not_served(type(model).__name__, getattr(model, "config", None)))


def not_served(name: str, config: Any) -> str:
    """Return a sentence that tells why the model called `name` is not served, and which models are served."""
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and not isinstance(config, SERVED_CONFIGS):
        return (
            f"{name} is a vision-language model, which TRL's GRPOTrainer and RLOOTrainer tune. vision_rl serves "
            f"encoder-decoders: {SERVED_NAMES}."
        )
    return f"vision_rl does not serve {name}. It serves models that read an image and write tokens about it: {SERVED_NAMES}."
