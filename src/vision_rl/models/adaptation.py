"""Adapt a trained model to another task: another resolution, classes, bins, number of boxes, or vocabulary.

Tokens that mean the same in both tasks keep their weights, so their logits do not change.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from vision_rl.models.decoder import VisionDecoderForCausalLM
from vision_rl.models.encoder import resize_position_embeddings


def adapt(model: VisionEncoderDecoderModel, old: Any, new: Any, length: int | None = None) -> None:
    """Prepare a model that was trained with the processor `old` for training with the processor `new`, in place.

    The encoder's position embeddings are resized to the image size of `new`. Tokens that mean the same in both
    processors (`new.tokens_from(old)`) keep their embedding and their row of the output head. Every other token starts
    with the mean of the old rows in the head, so that a new token is neither preferred nor out of reach. The decoder
    keeps its positions from the left; further positions are new.

    Args:
        model: the model. If the tokens change, its decoder must be a `VisionDecoderForCausalLM`.
        old: the processor that was saved with the model.
        new: the processor that the model is to be trained with.
        length: tokens of the longest completion, used where `new.completion_length` is None. The decoder then gets
            more positions if it has fewer than `length`, and never loses any.

    Raises:
        ValueError: for an image size that is not fixed and square, and for a decoder whose vocabulary or positions
            cannot be changed.
    """
    size, old_size = (dict(processor.image_processor.size) for processor in (new, old))
    if size != old_size:
        if size.get("height") is None or size.get("height") != size.get("width"):
            raise ValueError(
                f"The image processor's size is {size}; it must have a height and an equal width, such as "
                "{'height': 224, 'width': 224}."
            )
        resize_position_embeddings(model, size["height"])
    kept = new.tokens_from(old)
    if kept is not None and kept != list(range(old.vocab_size)):
        change_vocabulary(model, torch.tensor(kept))
        change_special_ids(model, kept, getattr(new, "tokenizer", None))
    if isinstance(model.decoder, VisionDecoderForCausalLM):
        positions = model.decoder.config.max_position_embeddings
        length = new.completion_length or max(length or 0, positions)
        if length != positions:
            change_length(model, length)
    model.generation_config.suppress_tokens = list(new.suppress_tokens) or None


@torch.no_grad()
def change_vocabulary(model: VisionEncoderDecoderModel, kept: Tensor) -> None:
    """Give the decoder another vocabulary, in place.

    Args:
        model: the model; its decoder must be a `VisionDecoderForCausalLM`.
        kept: `(new vocabulary,)`, for each new token the old token that means the same, or -1 where there is none.

    Raises:
        ValueError: for another decoder.
    """
    decoder: Any = model.decoder
    if not isinstance(decoder, VisionDecoderForCausalLM):
        raise ValueError(
            f"The vocabulary of a {type(decoder).__name__} cannot be changed here: keep its tokenizer, or take a new decoder."
        )
    stays = kept >= 0
    embedding = torch.randn(len(kept), decoder.config.hidden_size).to(
        decoder.embed_tokens.weight
    )  # N(0, 1), as the embeddings of a new decoder
    embedding[stays] = decoder.embed_tokens.weight[kept[stays]]
    head, old_head = nn.Linear(decoder.config.hidden_size, len(kept)).to(decoder.lm_head.weight), decoder.lm_head
    for new, old in ((head.weight, old_head.weight), (head.bias, old_head.bias)):
        new[:] = old.mean(0)
        new[stays] = old[kept[stays]]
    decoder.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
    decoder.lm_head = head
    decoder.config.vocab_size = len(kept)


def change_special_ids(model: VisionEncoderDecoderModel, kept: list[int], tokenizer: Any = None) -> None:
    """Let the model start, end and pad with the tokens with which it did, by their ids in another vocabulary, in place.

    Args:
        model: the model, whose configs have the ids of the old vocabulary.
        kept: as in `change_vocabulary`.
        tokenizer: of the new vocabulary; where it lacks a token, its own for the same purpose is taken.

    Raises:
        ValueError: if there is no token to start with.
    """
    own = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "pad_token_id", "eos_token_id")}
    starts = (own["bos_token_id"], getattr(tokenizer, "cls_token_id", None), own["pad_token_id"])
    own["decoder_start_token_id"] = next((start for start in starts if start is not None), None)
    policy: Any = model
    for config in (policy.generation_config, policy.config, policy.config.decoder):
        for name, id_of_new in own.items():
            old = getattr(config, name, None)
            if old is None:
                continue
            ids = [
                kept.index(id_of_old) for id_of_old in ([old] if isinstance(old, int) else old) if id_of_old in kept
            ]
            if not ids and id_of_new is None and name == "decoder_start_token_id":
                raise ValueError(
                    "The new vocabulary has neither the token with which the model starts nor a bos, cls or pad token: give its "
                    "tokenizer one of these."
                )
            setattr(config, name, id_of_new if not ids else ids[0] if isinstance(old, int) else ids)


@torch.no_grad()
def change_length(model: VisionEncoderDecoderModel, length: int) -> None:
    """Give the decoder positions for `length` tokens, in place; positions are kept from the left."""
    decoder: Any = model.decoder
    old = decoder.embed_positions.weight
    new = (torch.randn(length, old.shape[1]) * old.shape[1] ** -0.5).to(old)  # drawn as in the reference
    count = min(length, len(old))
    new[:count] = old[:count]
    decoder.embed_positions = nn.Embedding.from_pretrained(new, freeze=False)
    decoder.config.max_position_embeddings = length
    model.generation_config.max_new_tokens = length
