"""The codebook of a VQ-VAE, learned by running sums: nearest codeword, update, and the splitting of frequent codes.

The source is big_vision's `models/proj/uvim/vit.py`. Codewords get no gradient: a codeword is the direction of the
discounted sum of all vectors that were assigned to its code. A code that is no longer used takes over half of the most
frequent code; there is no other restart.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


SPLIT_NOISE = 0.001  # each component of a split codeword's copy differs by at most this share


def unit_codewords(dictionary: Tensor, counts: Tensor) -> Tensor:
    """Return the mean vector of each code, scaled to length 1, `(K, D)`, from sums `(K, D)` and counts `(K,)`."""
    means = dictionary / counts[:, None]
    return means / means.norm(dim=-1, keepdim=True)


def nearest_codewords(x: Tensor, codewords: Tensor) -> Tensor:
    """Return the codes `(...)` of the codewords nearest to the vectors `x (..., D)`; of equally near codes, the first.

    All codewords lie on a sphere, so the nearest codeword has the largest inner product. The reference takes the
    smallest |x|^2 - 2 x.e + |e|^2, where the large |x|^2 (about D) rounds off the last digits of the difference.

    The products are in float64. A program may have set all products of float32 to run in TF32 or bfloat16
    (`torch.set_float32_matmul_precision`), and these cannot tell codewords apart that were split.
    """
    if x.device.type != "mps":  # MPS has neither float64 nor TF32
        x, codewords = x.double(), codewords.double()
    with torch.autocast(x.device.type, enabled=False):
        return (x @ codewords.T).argmax(-1)


def assigned_sums(x: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """Return the sum of the vectors `x (..., D)` of each code, with their number in the last column: `(K, D + 1)`."""
    x = F.pad(x.flatten(0, -2), (0, 1), value=1.0)  # (n, D + 1)
    return x.new_zeros(codebook_size, x.shape[-1]).index_add_(0, codes.flatten(), x)


def split_most_frequent(dictionary: Tensor, counts: Tensor, noise: Tensor) -> None:
    """Replace the rarest code by a copy of the most frequent code, and halve the sums and counts of both, in place.

    The copy is multiplied by `noise (D,)`, near 1, so that it differs from the original.
    """
    most, least = counts.argmax(), counts.argmin()
    dictionary[least] = dictionary[most] * noise
    counts[least] = counts[most]
    for code in (most, least):
        dictionary[code] /= 2
        counts[code] /= 2


def split_rare(dictionary: Tensor, counts: Tensor, min_count: float, generator: torch.Generator) -> None:
    """Call `split_most_frequent` until no count is below `min_count`; `dictionary` and `counts` change in place.

    Raises:
        RuntimeError: if all counts are so small that the splitting would never end. In the reference it never ends.
    """
    while counts.min() < min_count:
        if counts.max() < 2 * min_count:
            raise RuntimeError(
                f"The codebook has {len(counts)} codes, more than such small batches can keep in use: "
                "take a smaller codebook_size or more images per step."
            )
        noise = torch.rand(dictionary.shape[1], generator=generator)
        split_most_frequent(dictionary, counts, 1 + SPLIT_NOISE * (2 * noise - 1))


class Codebook(nn.Module):
    """Discounted sums and counts of the vectors of each code, and the sums that are collected for the next update.

    The state (`dictionary`, `counts`, `num_updates`) consists of buffers: they are saved, and DistributedDataParallel
    may broadcast them, because they are equal on all ranks. The collected sums differ between ranks and must not be
    broadcast, so `collected` is an ordinary attribute, which is None at the end of an optimisation step and never
    saved. `UViMModel` initialises the buffers.
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
        """The codewords `(K, D)`, in float32."""
        return unit_codewords(self.dictionary.float(), self.counts.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes `(B, L)` and codewords `(B, L, D)` of vectors `x (B, L, D)`; training mode collects `x`."""
        codewords = self.codewords
        codes = nearest_codewords(x.detach(), codewords)
        if self.training:
            sums = assigned_sums(x.detach(), codes, len(codewords))
            self.collected = sums if self.collected is None else self.collected + sums
        return codes, codewords[codes]

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Update the codebook from the vectors collected on all ranks since the last update.

        Returns and errors are those of `UViMModel.update_codebook`.
        """
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
            # Split on the CPU: each split depends on the one before, and a CPU draws the same noise on all ranks.
            dictionary, counts = self.dictionary.cpu(), self.counts.cpu()
            split_rare(dictionary, counts, self.min_count, torch.Generator().manual_seed(int(self.num_updates)))
            self.dictionary.copy_(dictionary)
            self.counts.copy_(counts)
        self.num_updates += 1
        return {
            "codebook_max_ratio": (new_counts.max() / total).item(),
            "codebook_zeros_ratio": (new_counts == 0).float().mean().item(),
        }
