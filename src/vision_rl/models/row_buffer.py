"""A tensor that stays at its place in memory while some of its rows are dropped and, later, all are used again."""

import torch
from torch import Tensor


class RowBuffer:
    """A tensor of fixed size and place in memory whose first rows are in use: `rows`."""

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
        """Use only the rows of these `indices` from now on, and move them to the front of the tensor."""
        kept = self.rows[indices]
        self.rows = self.full[: len(indices)]
        self.rows.copy_(kept)


def buffer_like(tensor: Tensor) -> RowBuffer:
    """Return a buffer with the shape, dtype, device and values of `tensor`."""
    return RowBuffer(torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor.detach()))
