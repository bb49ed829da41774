"""What differs between the versions of transformers that vision_rl runs with; no other module knows of it.

A decoder's key-value cache is called `cache` from 5.24 on, and `past_key_values` before. All other code says `cache`: it
passes one to a decoder of transformers as `**named(cache)`, and a decoder of ours takes both names, because the installed
version may use either. Recomputing activations is called `activation_checkpointing` from 5.23 on, and
`gradient_checkpointing` before.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers import Cache, TrainingArguments
from transformers.masking_utils import create_causal_mask


CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    else "gradient_checkpointing"
)


def named(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword argument of a decoder, an output or a mask function of the installed transformers."""
    return {CACHE: cache}


def cache_of(outputs: Any) -> Cache | None:
    """The cache among a decoder's outputs."""
    return getattr(outputs, CACHE)


def takes_either_name(forward: Callable) -> Callable:
    """Lets a decoder's `forward(..., cache=)` be called with `past_key_values=` too.

    Raises:
        TypeError: where a call gives both.
    """

    @functools.wraps(forward)
    def renamed(*args, **kwargs):
        if "past_key_values" in kwargs:
            if kwargs.get("cache") is not None:
                raise TypeError("`cache` and `past_key_values` are two names of one argument: pass only `cache`.")
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    return renamed


def checkpointing(args: TrainingArguments) -> bool:
    """Whether activations are computed again in the backward pass instead of being kept."""
    return bool(getattr(args, CHECKPOINTING))


def checkpointing_kwargs(args: TrainingArguments) -> dict[str, Any]:
    """How they are, such as `use_reentrant`; empty where nothing is set."""
    return getattr(args, f"{CHECKPOINTING}_kwargs") or {}
