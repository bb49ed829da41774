"""Unwrap a transformers model and its parts from `torch.compile` and PEFT, and change for a while how it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule

from vision_rl.models.served import SERVED, HeadedDecoder, decoder_part


def base_model(model: Any) -> Any:
    """Return the transformers model itself, without the wrappers of `torch.compile` and PEFT."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_served(model: nn.Module) -> bool:
    """Return whether `sample` draws from the model itself; it samples another encoder-decoder through `generate`."""
    return isinstance(base_model(model), SERVED)


def decoder_of(policy: Any) -> Any:
    """Return the decoder that is trained: under PEFT's `modules_to_save=["decoder"]` the copy inside the wrapper."""
    decoder = decoder_part(policy)
    if isinstance(decoder, HeadedDecoder):
        return HeadedDecoder(*map(_trained, (decoder.decoder, decoder.head)))
    return _trained(decoder)


def _trained(decoder: Any) -> Any:
    if not isinstance(decoder, ModulesToSaveWrapper):
        return decoder
    active = [] if decoder.disable_adapters else decoder.active_adapters
    return decoder.modules_to_save[active[0]] if active else decoder.original_module


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the context, and restore each module's own mode afterwards, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Let a call of `module` run `forward` inside the context; the hooks of the module still run."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def call_inside_forward(model: Any, function: Callable[[], Any]) -> Any:
    """Return `function()`, which calls parts of the model; under FSDP2 the call runs inside the model's forward.

    FSDP2 gathers the weights that belong to no layer, such as the embeddings, in the hooks of the whole model's
    forward. A part of the model that is called outside of this forward would read shards instead of weights.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, FSDPModule):
        with replaced_forward(cast(nn.Module, model), function):
            return cast(nn.Module, model)()
    return function()
