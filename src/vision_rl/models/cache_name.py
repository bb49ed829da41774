"""The name of a decoder's key-value cache: transformers calls it `cache` from 5.24 on, and `past_key_values` before.

This is the only module that knows of the difference. All other code says `cache`: it passes one to a decoder of
transformers as `**named(cache)`, and a decoder of ours takes both names, because the installed version may use either.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers import Cache
from transformers.masking_utils import create_causal_mask


CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


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
