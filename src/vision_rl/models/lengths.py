"""How long a completion may be: as asked for, and as far as the decoder's positions reach."""

from torch import nn
from transformers import PreTrainedModel

from vision_rl.models.unwrapping import base_model, decoder_of, is_served


DEFAULT_LENGTH = 128


def completion_length(model: nn.Module, max_completion_length: int | None) -> int:
    """The most tokens a completion may have: as given, else `generation_config.max_new_tokens`, else what fits, to 128."""
    if max_completion_length is not None:
        return max_completion_length
    policy = base_model(model)
    if policy.generation_config.max_new_tokens is not None:
        return policy.generation_config.max_new_tokens
    return min(DEFAULT_LENGTH, num_positions(policy) or DEFAULT_LENGTH)


def num_positions(policy: PreTrainedModel) -> int | None:
    """How many tokens the decoder's position embeddings reach, if it has such a limit."""
    rows = getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None)
    uncounted = uncounted_id(policy)
    return rows if rows is None or uncounted is None else rows - uncounted - 1


def uncounted_id(policy: PreTrainedModel) -> int | None:
    """The id that the decoder leaves out when it counts positions: RoBERTa and its kin, and TrOCR with sine positions.

    A first token is counted by the tokens in the cache there, a later one by those in the row. Both agree unless this
    id, the padding of the embedding, stands among them.
    """
    decoder = decoder_of(policy) if is_served(policy) else policy
    for module in decoder.modules():
        if hasattr(type(module), "create_position_ids_from_input_ids"):
            return int(module.padding_idx)  # type: ignore[arg-type]
    return None
