"""Streams: data sets that are read from the front, such as those of `load_dataset(..., streaming=True)`.

Trainer and accelerate number batches, share them out and skip them after a resume by their sampler's keys. So a stream is
given keys as well, running numbers, and an object that looks like a map-style data set turns a number into the row that
comes next. Each process reads its own share of the stream, and saves how far it came in each checkpoint.
"""

import copy
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import Dataset, Sampler

from vision_rl.arguments import check_number, described
from vision_rl.randomness import ROW_TARGETS, keyed_generator
from vision_rl.trainer.data_order import Row, RowKey, as_columns


NUM_CHECKED = 32  # rows that are looked at before training


@runtime_checkable
class Reshuffled(Protocol):
    """A stream whose rows come in another order in each pass."""

    def set_epoch(self, epoch: int) -> None: ...


class StreamHead(list):
    """The first rows of a stream, which stand for it in what is checked before training."""

    @classmethod
    def of(cls, stream: Iterable) -> "StreamHead":
        return cls(islice(stream, NUM_CHECKED))


def is_stream(dataset) -> bool:
    return _is_of_datasets(dataset) or isinstance(dataset, torch.utils.data.IterableDataset)


def _is_of_datasets(dataset) -> bool:
    """Whether the rows are a stream of `datasets`. The library is not imported to find out: unless it is loaded, they are not."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, datasets.IterableDataset)


class StreamRows(Dataset):
    """The rows of a stream by their running number, which must be asked for in order; when it ends, it begins again.

    Of several processes each has its share of the rows of every micro-batch: of a `datasets.IterableDataset` what
    `split_dataset_by_node` gives it, whole shards where their number allows, else every n-th row; of another stream
    every n-th row. Nothing else is decoded.

    Args:
        dataset: a `datasets.IterableDataset`, or a `torch.utils.data.IterableDataset` whose rows are dicts. One with
            `state_dict` and `load_state_dict` is resumed by them, another one by reading on from its beginning.
        seed: of the random targets.
        batch_size: images of a micro-batch on a process.
        block_size: rows of all processes that are learned from together.
        repeats: how often each block is asked for, one time after the other.
        num_processes, process_index: who shares the stream.
    """

    def __init__(
        self,
        dataset,
        seed: int,
        batch_size: int,
        block_size: int,
        repeats: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.seed, self.batch_size, self.repeats = seed, batch_size, repeats
        self.num_processes, self.process_index = num_processes, process_index
        self.rows_of_block = block_size // num_processes  # of this process
        self._splits_itself = _is_of_datasets(dataset)
        if self._splits_itself and num_processes > 1:
            from datasets.distributed import split_dataset_by_node

            self.dataset = split_dataset_by_node(dataset, process_index, num_processes)
        else:
            self.dataset = copy.copy(dataset)  # its state is ours
        self._iterator: Iterator | None = None
        self._next = 0  # of this process's rows, over all passes
        self._pass, self._place = 0, 0  # place in the pass
        self._positions: dict[int, dict] = {}  # at the first row of the last two blocks
        self._block: dict[int, Row] = {}  # rows that will be asked for again

    def __getitem__(self, key: RowKey) -> Row:
        micro_batch, place = divmod(key.row_index, self.batch_size)
        wanted = micro_batch // self.num_processes * self.batch_size + place  # among this process's rows
        if wanted in self._block:
            return self._block[wanted]
        if wanted < self._next:
            raise RuntimeError(f"A stream is read forward: row {wanted} was asked for after row {self._next - 1}.")
        while self._next <= wanted:
            row = self._read()
        return row

    def _read(self) -> Row:
        if self._next % self.rows_of_block == 0:
            previous = self._next - self.rows_of_block
            self._positions = {at: old for at, old in self._positions.items() if at >= previous}
            if self._next not in self._positions:  # where a run goes on it is the position that was saved
                self._positions[self._next] = self._position()
            self._block = {}
        row = self._next_row()
        if self.repeats > 1:
            self._block[self._next] = row
        self._next += 1
        return row

    def _next_row(self) -> Row:
        while True:
            number = self._place * self.num_processes + self.process_index  # in the pass
            if self._iterator is None:
                self._iterator = self._iterate()
            try:
                columns = next(self._iterator)
            except StopIteration:
                if self._place < self.rows_of_block:
                    raise ValueError(
                        f"train_dataset is a stream of {self._place} rows for each of {self.num_processes} processes, but a "
                        f"step takes {self.rows_of_block} rows per process: lower the batch size."
                    ) from None
                self._pass, self._place, self._iterator = self._pass + 1, 0, None
                continue
            except Exception as error:
                raise ValueError(f"Row {number} of the stream cannot be read: {error}") from error
            self._place += 1
            seed = int(keyed_generator(self.seed, ROW_TARGETS, self._pass, number).integers(2**63))
            return Row(as_columns(columns, number), number, seed)

    def _iterate(self, state: Any = None) -> Iterator:
        """This process's rows of the pass, from its beginning or from a state; without a state, those behind are read."""
        if isinstance(self.dataset, Reshuffled):
            self.dataset.set_epoch(self._pass)
        if state is not None:
            self.dataset.load_state_dict(state)
            return iter(self.dataset)
        if self._splits_itself:
            return islice(self.dataset, self._place, None)
        return islice(self.dataset, self._place * self.num_processes + self.process_index, None, self.num_processes)

    # --- where it is --------------------------------------------------------------------------------------------------

    def _position(self) -> dict:
        stateful = self._place > 0 and self._splits_itself_or_alone() and isinstance(self.dataset, Stateful)
        return {
            "row": self._next,
            "pass": self._pass,
            "place": self._place,
            "state": self.dataset.state_dict() if stateful else None,
            "num_processes": self.num_processes,
        }

    def _splits_itself_or_alone(self) -> bool:
        """Whether the stream's own state can be saved, as no other process takes rows from between."""
        return self._splits_itself or self.num_processes == 1

    def position(self, num_asked: int) -> dict:
        """The place at which a resumed run goes on, after `num_asked` rows of this process; a repeated row counts each time.

        The batch after the last one may have been read already, so that this is not where the stream is now.
        """
        row = num_asked // (self.rows_of_block * self.repeats) * self.rows_of_block
        return self._positions[row] if row in self._positions else self._position()

    def resume(self, position: dict) -> None:
        """Go on from a saved position, before any row is asked for.

        Raises:
            ValueError: it was saved by another number of processes, which have other shares; or it is no position.
        """
        counts = ("row", "pass", "place", "num_processes")
        if not isinstance(position, dict) or {"state", *counts} - set(position):
            raise ValueError(
                f"The place in the stream must be a dict with {[*counts, 'state']}; it is {described(position)}."
            )
        for name in counts:
            check_number(f"The `{name}` of the place in the stream", position[name], 0, 2**62, whole=True)
        if position["num_processes"] != self.num_processes:
            raise ValueError(
                f"The checkpoint has the places of {position['num_processes']} processes in the stream, but now there are "
                f"{self.num_processes}: resume with as many processes as before."
            )
        self._next, self._pass, self._place = position["row"], position["pass"], position["place"]
        self._iterator, self._positions = self._iterate(position["state"]), {position["row"]: position}


class RunningNumbers(Sampler[RowKey]):
    """The keys of a run on a stream: `num_steps * step_size` of them, in blocks that come `repeats` times each."""

    def __init__(self, num_steps: int, step_size: int, block_size: int | None = None, repeats: int = 1):
        self.length, self.block_size, self.repeats = num_steps * step_size, block_size or step_size, repeats

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[RowKey]:
        asked = self.block_size * self.repeats
        for place in range(self.length):
            block, within = divmod(place, asked)
            yield RowKey(0, block * self.block_size + within % self.block_size)
