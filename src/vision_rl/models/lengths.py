"""The largest length of a completion: the length that the user asks for, and the number of the decoder's positions."""

from torch import nn
from transformers import PreTrainedModel

from vision_rl.models.unwrapping import base_model, decoder_of, is_served


DEFAULT_LENGTH = 128


def completion_length(model: nn.Module, max_completion_length: int | None) -> int:
    """Return the largest number of tokens of a completion.

    It is `max_completion_length` if given, else `generation_config.max_new_tokens` if set, else the number of the
    decoder's positions, but at most 128.
    """
    if max_completion_length is not None:
        return max_completion_length
    policy = base_model(model)
    if policy.generation_config.max_new_tokens is not None:
        return policy.generation_config.max_new_tokens
    return min(DEFAULT_LENGTH, num_positions(policy) or DEFAULT_LENGTH)


def num_positions(policy: PreTrainedModel) -> int | None:
    """Return the number of tokens for which the decoder has position embeddings, or None if there is no such limit."""
    rows = getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None)
    uncounted = uncounted_id(policy)
    return rows if rows is None or uncounted is None else rows - uncounted - 1


def uncounted_id(policy: PreTrainedModel) -> int | None:
    """Return the id that the decoder skips when it counts positions, or None if the decoder counts all ids.

    RoBERTa and similar decoders skip the padding id of their embedding, and so does TrOCR with sine positions. These
    decoders count the position of a first token by the tokens in the cache, and of a later token by the tokens in its
    row. Both counts agree unless the skipped id is among the tokens.
    """
    decoder = decoder_of(policy) if is_served(policy) else policy
    for module in decoder.modules():
        if hasattr(type(module), "create_position_ids_from_input_ids"):
            return int(module.padding_idx)  # type: ignore[arg-type]
    return None
