"""The ids with which a model starts, pads and ends a completion, and the ids that it must not write."""

from typing import NamedTuple

from torch import nn

from vision_rl.models.unwrapping import base_model


class SpecialIds(NamedTuple):
    decoder_start: int
    pad: int
    ends: list[int]
    suppressed: list[int]


def special_ids(model: nn.Module) -> SpecialIds:
    """Read the ids that sampling needs from `model.generation_config`; raise `ValueError` if start or pad is None."""
    config = base_model(model).generation_config
    start, pad, end = config.decoder_start_token_id, config.pad_token_id, config.eos_token_id
    for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
        if value is None:
            raise ValueError(
                f"The model has no {name}: set model.generation_config.{name} and model.config.{name} "
                "(vision_rl.models.vision_encoder_decoder does both)."
            )
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    return SpecialIds(start, pad, ends, list(config.suppress_tokens or []))
