"""Linear layers for one rollout on a CPU, with weights packed in the order in which oneDNN reads them.

Packing takes as long as 4 to 8 matrix products and then saves time at every token: the decode loop of 6 layers of
width 384 is 1.4 times as fast on one core (`python benchmarks/ways.py`). Any decoder of linear layers gains, such as
BERT.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vision_rl.models.unwrapping import replaced_forward


FEW_ROWS = 8  # oneDNN chooses the order for this number of rows; the packed weight serves any number
MIN_LENGTH = 16  # smallest number of tokens of a completion for which packing is worth it


class PackedLinear:
    """Computes what an `nn.Linear` computes, with a packed copy of its present weight."""

    @staticmethod
    def pays(weight: Tensor) -> bool:
        """Return whether `weight` is large enough: a call takes 30 microseconds more than that of an `nn.Linear`."""
        return weight.dtype == torch.float32 and weight.numel() >= 2**17

    def __init__(self, linear: nn.Linear):
        # Private operators of torch's own compiler: `can_pack` checks that this version of torch has them.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), FEW_ROWS)
        self.bias = linear.bias

    def __call__(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(input, self.weight, self.bias, "none", [], "")


def can_pack(device: torch.device, length: int) -> bool:
    """Return whether packing speeds up a rollout of `length` tokens: on a CPU, in float32, if torch can pack."""
    return (
        device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and length >= MIN_LENGTH
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@contextmanager
def packed_linears(decoder: nn.Module) -> Iterator[None]:
    """Let the large linear layers of `decoder` compute with packed weights, without gradient, inside the context."""
    with ExitStack() as stack:
        for module in decoder.modules():
            if isinstance(module, nn.Linear) and _is_plain(module) and PackedLinear.pays(module.weight):
                stack.enter_context(replaced_forward(module, PackedLinear(module)))
        yield


def _is_plain(linear: nn.Linear) -> bool:
    """Return whether a layer is an `nn.Linear`, no (quantised) subclass, with its class's forward and a parameter."""
    return type(linear) is nn.Linear and "forward" not in vars(linear) and isinstance(linear.weight, nn.Parameter)
