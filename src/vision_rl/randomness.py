"""Random numbers as a table that is looked up, not a stream that is consumed.

Every draw is a pure function of the seed and of what it is for: (epoch), (epoch, row) or (step, row, generation).
So the same images draw the same samples whatever the micro-batch, the rank or an interruption. The table is Philox
(Salmon et al. 2011), a counter-based generator: the key holds seed and purpose, the counter the rest.
"""

import numpy as np
import torch


DATA_ORDER, ROW_TARGETS, SAMPLING = range(3)


def keyed_generator(seed: int, purpose: int, *address: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments; `address` has up to three non-negative numbers."""
    counter = [0, *address, *[0] * (3 - len(address))]  # word 0 counts the draws of this one generator
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))


def uniform_table(seed: int, step: int, row_index: torch.Tensor, num_generations: int, length: int) -> torch.Tensor:
    """The uniforms in [0, 1) from which the completions of one step are drawn: `FloatTensor (B, G, length)`.

    `row_index (B,)` is the images' place in the data set. Row (b, g) is keyed by (seed, step, row_index[b], g).
    """
    table = np.empty((len(row_index), num_generations, length), dtype=np.float32)
    for b, row in enumerate(row_index.tolist()):
        for g in range(num_generations):
            keyed_generator(seed, SAMPLING, step, row, g).random(out=table[b, g], dtype=np.float32)
    return torch.from_numpy(table).to(row_index.device)
