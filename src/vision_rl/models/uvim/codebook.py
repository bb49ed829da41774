"""The codebook of a VQ-VAE, learned by running sums: nearest codeword, update, and the splitting of frequent codes.

From big_vision's `models/proj/uvim/vit.py`. There is no gradient to the codewords: a codeword points where the
discounted sum of all vectors that were assigned to it points. A code that is no longer used takes over half of the most
frequent one; that is the only restart.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


SPLIT_NOISE = 0.001  # a split codeword's copy is off by at most this factor, component by component


def unit_codewords(dictionary: Tensor, counts: Tensor) -> Tensor:
    """The mean vector of each code, on the unit sphere: sums `(K, D)` and counts `(K,)` to `(K, D)`."""
    means = dictionary / counts[:, None]
    return means / means.norm(dim=-1, keepdim=True)


def nearest_codewords(x: Tensor, codewords: Tensor) -> Tensor:
    """The codes `(...)` of the vectors `x (..., D)`; of equally near ones, the first.

    The nearest of several points on a sphere is the one with the largest inner product. The reference takes the
    smallest |x|^2 - 2 x.e + |e|^2, where |x|^2 (about D) swallows some of the last digits of what is compared.

    In float64: a product of float32 is one of TF32 or bfloat16 wherever a program has said so for all of its products
    (`torch.set_float32_matmul_precision`), and codewords that were split lie nearer together than those can tell.
    """
    if x.device.type != "mps":  # which has neither float64 nor TF32
        x, codewords = x.double(), codewords.double()
    with torch.autocast(x.device.type, enabled=False):
        return (x @ codewords.T).argmax(-1)


def assigned_sums(x: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """`(K, D + 1)`: the sum of the vectors `x (..., D)` of each code, and in the last column how many there are."""
    x = F.pad(x.flatten(0, -2), (0, 1), value=1.0)  # (n, D + 1)
    return x.new_zeros(codebook_size, x.shape[-1]).index_add_(0, codes.flatten(), x)


def split_most_frequent(dictionary: Tensor, counts: Tensor, noise: Tensor) -> None:
    """Share the most frequent code between its own place and that of the rarest, in place.

    `noise (D,)`, near 1, tells the copy from the original.
    """
    most, least = counts.argmax(), counts.argmin()
    dictionary[least] = dictionary[most] * noise
    counts[least] = counts[most]
    for code in (most, least):
        dictionary[code] /= 2
        counts[code] /= 2


def split_rare(dictionary: Tensor, counts: Tensor, min_count: float, generator: torch.Generator) -> None:
    """`split_most_frequent` until no count is below `min_count`, in place.

    Raises:
        RuntimeError: if all counts are so small that this would never end, as it would not in the reference.
    """
    while counts.min() < min_count:
        if counts.max() < 2 * min_count:
            raise RuntimeError(
                f"The codebook has {len(counts)} codes, more than such small batches can keep in use: "
                "take a smaller codebook_size or more images a step."
            )
        noise = torch.rand(dictionary.shape[1], generator=generator)
        split_most_frequent(dictionary, counts, 1 + SPLIT_NOISE * (2 * noise - 1))


class Codebook(nn.Module):
    """Discounted sums and counts of the vectors of each code, and what has been collected for the next update.

    The state (`dictionary`, `counts`, `num_updates`) is made of buffers: it is saved, and DistributedDataParallel may
    broadcast it, for it is equal on all ranks. What is collected differs between ranks and must not be broadcast, so it
    is an ordinary attribute; it is empty at the end of an optimisation step and never saved. `UViMModel` initialises it.
    """

    dictionary: Tensor
    counts: Tensor
    num_updates: Tensor

    def __init__(self, codebook_size: int, code_dim: int, momentum: float, min_count: float):
        super().__init__()
        self.momentum, self.min_count = momentum, min_count
        self.register_buffer("dictionary", torch.empty(codebook_size, code_dim))
        self.register_buffer("counts", torch.empty(codebook_size))
        self.register_buffer("num_updates", torch.empty((), dtype=torch.long))
        self.collected: Tensor | None = None  # (K, D + 1), see `assigned_sums`

    @property
    def codewords(self) -> Tensor:
        """`(K, D)`, in float32."""
        return unit_codewords(self.dictionary.float(), self.counts.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors `x (B, L, D)` to their codes `(B, L)` and codewords `(B, L, D)`; collects them when training."""
        codewords = self.codewords
        codes = nearest_codewords(x.detach(), codewords)
        if self.training:
            sums = assigned_sums(x.detach(), codes, len(codewords))
            self.collected = sums if self.collected is None else self.collected + sums
        return codes, codewords[codes]

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Learn from all that was collected, on all ranks, since the last update; see `UViMModel.update_codebook`."""
        if self.dictionary.dtype != torch.float32:
            raise RuntimeError(
                f"The codebook is in {self.dictionary.dtype}, which cannot hold running sums: load the model in float32 "
                "and train it with autocast."
            )
        size, dim = self.dictionary.shape
        new = self.dictionary.new_zeros(size, dim + 1) if self.collected is None else self.collected
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(new)
        self.collected = None
        new_sums, new_counts = new[:, :dim], new[:, dim]
        total = new_counts.sum()
        if total == 0:
            raise RuntimeError("There is nothing to learn codewords from: call the model in training mode first.")

        self.dictionary.mul_(self.momentum).add_(new_sums)
        self.counts.mul_(self.momentum).add_(new_counts)
        if (self.counts < self.min_count).any():
            # On the CPU, because each split depends on the one before, and because its numbers are the same everywhere.
            dictionary, counts = self.dictionary.cpu(), self.counts.cpu()
            split_rare(dictionary, counts, self.min_count, torch.Generator().manual_seed(int(self.num_updates)))
            self.dictionary.copy_(dictionary)
            self.counts.copy_(counts)
        self.num_updates += 1
        return {
            "codebook_max_ratio": (new_counts.max() / total).item(),
            "codebook_zeros_ratio": (new_counts == 0).float().mean().item(),
        }
