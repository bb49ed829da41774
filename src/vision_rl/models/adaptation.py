"""A trained model for another task's sizes: other resolution, classes, bins, number of boxes, or vocabulary.

What meant the same before keeps its weights: the logits of such tokens do not change.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from vision_rl.models.decoder import VisionDecoderForCausalLM
from vision_rl.models.encoder import resize_position_embeddings


def adapt(model: VisionEncoderDecoderModel, old: Any, new: Any, length: int | None = None) -> None:
    """Make a model that was trained with the processor `old` ready to be trained with `new`, in place.

    The encoder's positions come to the size of the new image processor. Tokens that mean the same (`new.tokens_from(old)`)
    keep their embedding and their row of the output head; others start with the old rows' mean in the head, so that a new
    token is neither preferred nor out of reach. The decoder's positions are kept from the left; more of them are new.

    Args:
        model: with any decoder, if the tokens stay as they are; with a `VisionDecoderForCausalLM` otherwise.
        old: the processor that was saved with it.
        new: the processor that it is to have.
        length: tokens of the longest completion, where the processor does not say (`completion_length`): positions are added
            for it, and none taken away.

    Raises:
        ValueError: for images of no fixed, square size, and for a decoder whose vocabulary or positions cannot be changed.
    """
    size, old_size = (dict(processor.image_processor.size) for processor in (new, old))
    if size != old_size:
        if size.get("height") is None or size.get("height") != size.get("width"):
            raise ValueError(f"The image processor's size is {size}: give height and width, and the same for both.")
        resize_position_embeddings(model, size["height"])
    kept = new.tokens_from(old)
    if kept is not None and kept != list(range(old.vocab_size)):
        change_vocabulary(model, torch.tensor(kept))
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
        model: with a `VisionDecoderForCausalLM`.
        kept: `(new vocabulary,)`, for each new token the old one that means the same, or -1.
    """
    decoder: Any = model.decoder
    if not isinstance(decoder, VisionDecoderForCausalLM):
        raise ValueError(
            f"The vocabulary of a {type(decoder).__name__} cannot be changed here: keep its tokenizer, or take a new decoder."
        )
    stays = kept >= 0
    embedding = torch.randn(len(kept), decoder.config.hidden_size).to(
        decoder.embed_tokens.weight
    )  # N(0, 1), as new ones
    embedding[stays] = decoder.embed_tokens.weight[kept[stays]]
    head, old_head = nn.Linear(decoder.config.hidden_size, len(kept)).to(decoder.lm_head.weight), decoder.lm_head
    for new, old in ((head.weight, old_head.weight), (head.bias, old_head.bias)):
        new[:] = old.mean(0)
        new[stays] = old[kept[stays]]
    decoder.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
    decoder.lm_head = head
    decoder.config.vocab_size = len(kept)


@torch.no_grad()
def change_length(model: VisionEncoderDecoderModel, length: int) -> None:
    """Give the decoder positions for so many tokens, in place; those from the left are kept."""
    decoder: Any = model.decoder
    old = decoder.embed_positions.weight
    new = (torch.randn(length, old.shape[1]) * old.shape[1] ** -0.5).to(old)  # as the reference draws them
    count = min(length, len(old))
    new[:count] = old[:count]
    decoder.embed_positions = nn.Embedding.from_pretrained(new, freeze=False)
    decoder.config.max_position_embeddings = length
    model.generation_config.max_new_tokens = length
