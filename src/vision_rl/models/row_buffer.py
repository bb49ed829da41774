"""A tensor that stays at its place in memory while rows of it are dropped and, later, all are used again."""

import torch
from torch import Tensor


class RowBuffer:
    """The first rows of a tensor of fixed size and place are in use: `rows`."""

    def __init__(self, full: Tensor):
        self.full = self.rows = full

    def restart(self, value: Tensor | float = 0) -> None:
        """Use all rows, filled with `value`."""
        self.rows = self.full
        if isinstance(value, Tensor):
            self.full.copy_(value)
        else:
            self.full.fill_(value)

    def keep(self, indices: Tensor) -> None:
        """Use these of the rows only, which move to the front."""
        kept = self.rows[indices]
        self.rows = self.full[: len(indices)]
        self.rows.copy_(kept)


def buffer_like(tensor: Tensor) -> RowBuffer:
    """A buffer of the tensor's shape, dtype and device, with its values."""
    return RowBuffer(torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor.detach()))
