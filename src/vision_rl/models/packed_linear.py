"""Linear layers for one rollout on a CPU: weights in the order in which oneDNN reads them.

Packing takes as long as 4 to 8 products and then pays at every token: the decode loop of 6 x 384 layers is 1.4 times as fast
on one core (`python benchmarks/ways.py`), and that of any decoder of linear layers gains, such as BERT's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vision_rl.models.unwrapping import replaced_forward


FEW_ROWS = 8  # the order is chosen for so many; it serves any number
MIN_LENGTH = 16  # tokens from which on packing is worth it


class PackedLinear:
    """What computes an `nn.Linear`, its weights as they are now."""

    @staticmethod
    def pays(weight: Tensor) -> bool:
        """A call takes 30 microseconds more, which small weights do not make up for."""
        return weight.dtype == torch.float32 and weight.numel() >= 2**17

    def __init__(self, linear: nn.Linear):
        # Private operators of torch's own compiler: used where they are, and `can_pack` looks.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), FEW_ROWS)
        self.bias = linear.bias

    def __call__(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(input, self.weight, self.bias, "none", [], "")


def can_pack(device: torch.device, length: int) -> bool:
    """Whether a rollout of `length` tokens gains by it: on a CPU, in float32, by a torch that has the operators."""
    return (
        device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and length >= MIN_LENGTH
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@contextmanager
def packed_linears(decoder: nn.Module) -> Iterator[None]:
    """Inside, the large linear layers of `decoder` compute with packed weights; without gradient."""
    with ExitStack() as stack:
        for module in decoder.modules():
            if isinstance(module, nn.Linear) and _is_plain(module) and PackedLinear.pays(module.weight):
                stack.enter_context(replaced_forward(module, PackedLinear(module)))
        yield


def _is_plain(linear: nn.Linear) -> bool:
    """Whether it computes what its class does: no subclass (quantised), no forward or weight that somebody else makes."""
    return type(linear) is nn.Linear and "forward" not in vars(linear) and isinstance(linear.weight, nn.Parameter)
