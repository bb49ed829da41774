"""Random numbers as a table that is looked up, not a stream that is consumed.

Every draw is a pure function of the seed and of what it is for: (epoch), (epoch, row) or (step, row, generation).
So the same images draw the same samples whatever the micro-batch, the rank or an interruption. The table is Philox
(Salmon et al. 2011), a counter-based generator: the key holds seed and purpose, the counter the rest.
"""

import random
from typing import Any

import numpy as np
import torch


DATA_ORDER, ROW_TARGETS, SAMPLING = range(3)

# Philox4x64-10
FLOATS_A_BLOCK = 8  # of four words of 64 bits
LOW = 2**32 - 1
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def keyed_generator(seed: int, purpose: int, *address: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments; `address` has up to three non-negative numbers."""
    counter = [0, *address, *[0] * (3 - len(address))]  # word 0 counts the draws of this one generator
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))


def uniform_table(
    seed: int, step: int, row_index: torch.Tensor, num_generations: int, length: int, first_generation: int = 0
) -> torch.Tensor:
    """The uniforms in [0, 1) from which the completions of one step are drawn: `FloatTensor (B, G, length)`.

    `row_index (B,)` is the images' place in the data set. Row (b, g) is keyed by (seed, step, row_index[b], g): it is
    what `keyed_generator(seed, SAMPLING, step, row_index[b], g).random(length, dtype=float32)` gives, g counted from
    `first_generation`. It is computed where `row_index` is, so that no host waits for a GPU.
    """
    device = row_index.device
    blocks = -(-length // FLOATS_A_BLOCK)
    counter = (
        torch.arange(1, blocks + 1, device=device),  # raised before its first use
        step,
        row_index.long()[:, None, None],
        torch.arange(first_generation, first_generation + num_generations, device=device)[:, None],
    )
    words = _philox(counter, (seed, SAMPLING))  # four of (B, G, blocks)
    halves = [half for word in words for half in (word & LOW, (word >> 32) & LOW)]  # low comes first
    bits = torch.stack(halves, dim=-1).flatten(-2)[..., :length]  # 32 of each number
    return (bits >> 8).float() * 2**-24  # a float32 has 24 bits


def _philox(
    counter: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor], key: tuple[int, int]
) -> tuple[torch.Tensor, ...]:
    """Philox4x64-10 of four int64 words, which stand for unsigned ones: products and sums wrap around alike."""
    c0: Any
    c1: Any
    c0, c1, c2, c3 = counter
    for number in range(10):
        k0, k1 = (_signed(word + number * step) for word, step in zip(key, KEY_STEPS, strict=True))
        high0, low0 = _product(MULTIPLIERS[0], c0)
        high1, low1 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def _product(factor: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and the low 64 bits of `factor * word`, out of the four products of their halves."""
    factor_low, factor_high = factor & LOW, factor >> 32
    low, high = word & LOW, (word >> 32) & LOW
    first = factor_high * low + ((factor_low * low >> 32) & LOW)
    second = factor_low * high + (first & LOW)
    return factor_high * high + ((first >> 32) & LOW) + ((second >> 32) & LOW), _signed(factor) * word


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


def random_states() -> tuple:
    """Return the states of the global generators of Python, numpy and torch, on the CPU and on GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_states(states: tuple) -> None:
    """Give the global generators the states that `random_states` returned."""
    of_python, of_numpy, of_torch, of_cuda = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    torch.cuda.set_rng_state_all(of_cuda)
