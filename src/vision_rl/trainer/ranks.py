"""What all ranks must agree on: an error of one ends all of them at once, and all were given the same data."""

import atexit
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from vision_rl.models.encoded import EncodedDataset


_SAMPLED_ROWS = 64


class OtherRankFailed(RuntimeError):
    """Raised on the ranks that had no error themselves, with that of the one that had."""


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """All ranks leave the block at once: if one of them raised in it, the others raise `OtherRankFailed`.

    Without it the others would wait in their next exchange for one that never comes, with NCCL half an hour long. Inside the
    block there must be no exchange between ranks.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if accelerator.num_processes > 1:
        texts = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
        if error is None and any(texts):
            rank = next(rank for rank, text in enumerate(texts) if text)
            raise OtherRankFailed(f"This rank stops because rank {rank} failed: {texts[rank]}")
    if error is not None:
        raise error


def wait_for_gloo_at_exit() -> None:
    """Make Python wait half a second when it ends, until gloo's thread has let go of the last exchange.

    The thread needs Python's lock for that. If Python is already being taken down, asking for the lock aborts the process
    ("terminate called without an active exception"), and the launcher reports a run as failed that has saved everything.
    """
    if torch.distributed.is_initialized():
        atexit.unregister(_let_gloo_finish)  # once is enough
        atexit.register(_let_gloo_finish)


def _let_gloo_finish() -> None:
    time.sleep(0.5)


def check_same_data(accelerator: Accelerator, datasets: dict[str, Any]) -> None:
    """Check that every rank was given the same rows, of which each takes its share by their numbers.

    Compared are the lengths, the names of the columns, and, of a `datasets.Dataset` and a plain list, a sample of the rows.

    Raises:
        ValueError: on all ranks, with what each of them has.
    """
    if accelerator.num_processes == 1:
        return
    with together(accelerator):
        described = {name: _described(dataset) for name, dataset in datasets.items()}
    ranks: list[dict] = gather_object([described])
    for name in sorted(set().union(*ranks)):
        seen = [rank.get(name, ("is not there",)) for rank in ranks]
        if any(one != seen[0] for one in seen):
            parts = next(pair for pair in zip(*seen, strict=False) if len(set(pair)) > 1)
            told = "; ".join(f"rank {rank}: {part}" for rank, part in enumerate(parts))
            raise ValueError(
                f"The ranks were given different data as {name} ({told}). Every rank needs the whole data set, in the same "
                "order; the trainer shares the rows out itself. Do not shard it beforehand, and shuffle only with a seed."
            )


def _described(dataset: Any) -> tuple[str, ...]:
    """Length, columns and a digest of some rows, as texts to compare and to show."""
    import datasets

    rows = dataset.dataset if isinstance(dataset, EncodedDataset) else dataset
    count = len(rows)
    places = sorted({place * count // _SAMPLED_ROWS for place in range(_SAMPLED_ROWS)})
    if isinstance(rows, datasets.Dataset):
        columns = sorted(rows.column_names)
        sample = rows.with_format("arrow").select(places)  # neither decoded nor transformed, which may be random
        digest = hashlib.sha256(repr([sample[i].to_pydict() for i in range(len(sample))]).encode()).hexdigest()
    elif isinstance(rows, list | tuple):
        columns = sorted(rows[0])
        digest = hashlib.sha256(repr([_plain(rows[place]) for place in places]).encode()).hexdigest()
    else:
        return (f"{count} rows",)
    return f"{count} rows", f"the columns {columns}", f"rows with the digest {digest[:12]}"


def _plain(value: Any) -> Any:
    """A row in plain types: equal rows have an equal `repr`. A picture, which may be an open file, is told by its size."""
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.shape, hashlib.sha256(value.tobytes()).digest()
    if isinstance(value, Image.Image):
        return value.mode, value.size
    return value if isinstance(value, str | int | float | bytes | None) else type(value).__name__
