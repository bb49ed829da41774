"""The position of the token that is being written: a tensor that the step reads, and a number that sets its shapes."""

import torch
from torch import Tensor


class CachePosition:
    """The place in the cache that the next token takes.

    Args:
        length: largest number of tokens of a completion.
        device: the device of `index (1,)`, the position as a tensor.
    """

    step: int  # the position as a number on the host
    kv_length: int  # number of cached tokens that attention is given
    bucket: int

    def __init__(self, length: int, device: torch.device):
        self.length = length
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        self.set(0)

    def restart(self) -> None:
        self.index.zero_()
        self.set(0)

    def set(self, step: int, bucket: int = 1) -> None:
        """Set the position on the host, and with it how many cached tokens attention is given.

        Attention is given a multiple of `bucket` tokens and a mask; if `bucket` is 1, exactly the tokens so far.
        """
        self.step, self.bucket = step, bucket
        self.kv_length = min((step // bucket + 1) * bucket, self.length)

    def mask(self) -> Tensor | None:
        """Return a mask `(1, 1, 1, kv_length)`, True for the tokens written so far, or None where `bucket` is 1."""
        if self.bucket == 1:
            return None
        return (torch.arange(self.kv_length, device=self.index.device) <= self.index)[None, None, None]
