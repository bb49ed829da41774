"""Which token is being written: known on the device to the step, and on the host to what chooses its shapes."""

import torch
from torch import Tensor


class CachePosition:
    """The place in the cache that the next token takes.

    Args:
        length: most tokens of a completion.
        device: where `index (1,)`, the position as a tensor, lives.
    """

    step: int  # the same number on the host
    kv_length: int  # cached tokens that attention is given
    bucket: int

    def __init__(self, length: int, device: torch.device):
        self.length = length
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        self.set(0)

    def restart(self) -> None:
        self.index.zero_()
        self.set(0)

    def set(self, step: int, bucket: int = 1) -> None:
        """The host's side; attention is given a multiple of `bucket` tokens and a mask, or exactly the tokens so far."""
        self.step, self.bucket = step, bucket
        self.kv_length = min((step // bucket + 1) * bucket, self.length)

    def mask(self) -> Tensor | None:
        """True for the tokens written so far, of those that attention is given: `(1, 1, 1, kv_length)`."""
        if self.bucket == 1:
            return None
        return (torch.arange(self.kv_length, device=self.index.device) <= self.index)[None, None, None]
