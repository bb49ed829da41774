"""Which row comes when: a pure function of (seed, epoch), so that a resumed run sees what it would have seen.

transformers' and accelerate's own samplers replay epoch 0 after a resume, and with several ranks their `set_epoch`
does not reach the sampler behind a skipped batch sampler. Here the data set holds the epoch, which accelerate always
finds, and each key that the sampler yields carries it on to the workers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Sampler

from vision_rl.randomness import DATA_ORDER, ROW_TARGETS, keyed_generator


MOST_BAD_ROWS = 16  # next to each other, with on_bad_row="skip"


class RowKey(NamedTuple):
    epoch: int
    row_index: int


class Row(NamedTuple):
    """A row on its way to the collator: its columns, its index in the data set, and the seed of its random targets."""

    columns: dict
    row_index: int
    seed: int | None
    instead_of: str | None = None  # what is wrong with the row whose place it takes


def as_columns(row: Any, number: int) -> dict:
    if not isinstance(row, Mapping):
        raise TypeError(f"Row {number} is a {type(row).__name__}; a row must be a dict of columns.")
    return dict(row)


class RowDataset(Dataset):
    """A map-style data set whose rows know their index; `seed=None` (evaluation) makes no random targets.

    With `check`, which raises ValueError for a row that cannot be used, the next row that can takes its place: a function
    of the row alone, so that no other row moves, whatever the split into batches, workers and ranks.
    """

    def __init__(self, dataset, seed: int | None = None, check: Callable[[Row], Any] | None = None):
        self.dataset = dataset
        self.seed = seed
        self.check = check
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, key: RowKey) -> Row:
        if self.check is None:
            return self._row(key)
        problem: str | None = None
        for place in range(MOST_BAD_ROWS):
            try:
                row = self._row(RowKey(key.epoch, (key.row_index + place) % len(self)))
                self.check(row)
            except ValueError as error:
                problem = problem or str(error)
            else:
                return row._replace(instead_of=problem)
        raise ValueError(
            f"{MOST_BAD_ROWS} rows one after another, from row {key.row_index} on, cannot be used: is the data still "
            f"there? {problem}"
        )

    def _row(self, key: RowKey) -> Row:
        seed = None
        if self.seed is not None:
            seed = int(keyed_generator(self.seed, ROW_TARGETS, *key).integers(2**63))
        try:
            columns = self.dataset[key.row_index]
        except Exception as error:
            raise ValueError(f"Row {key.row_index}{self._file_of(key.row_index)} cannot be read: {error}") from error
        return Row(as_columns(columns, key.row_index), key.row_index, seed)

    def _file_of(self, index: int) -> str:
        """The path of the row's unreadable image, if `datasets` knows it."""
        import datasets

        if not isinstance(self.dataset, datasets.Dataset):
            return ""
        images = [name for name, feature in self.dataset.features.items() if isinstance(feature, datasets.Image)]
        if not images:
            return ""
        undecoded = self.dataset.with_format(None).select([index]).select_columns(images)
        for name in images:
            undecoded = undecoded.cast_column(name, datasets.Image(decode=False))
        paths = [value["path"] for value in undecoded[0].values() if value and value["path"]]
        return f" ({', '.join(paths)})" if paths else ""


class WithoutColumns(Dataset):
    """The rows of a map-style data set without some of their columns."""

    def __init__(self, dataset, columns: set[str]):
        self.dataset, self.columns = dataset, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return {name: value for name, value in dict(self.dataset[index]).items() if name not in self.columns}


class EpochSampler(Sampler[RowKey]):
    """The keys of one epoch: shuffled by (seed, epoch), cut to whole blocks of `block_size` rows.

    A block is what is learned from together: an optimisation step, or a rollout, whose rows come `repeats` times in a
    row, so that Trainer's count of steps stays true. Without a shuffle each epoch goes on in the rows' order where the
    last one has ended.
    """

    def __init__(self, rows: RowDataset, seed: int = 0, shuffle: bool = True, block_size: int = 1, repeats: int = 1):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.block_size, self.repeats = block_size, repeats

    def __len__(self) -> int:
        return self._num_rows() * self.repeats

    def _num_rows(self) -> int:
        return len(self.rows) // self.block_size * self.block_size

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[RowKey]:
        epoch, count, length = self.rows.epoch, len(self.rows), self._num_rows()
        if self.shuffle:
            order = keyed_generator(self.seed, DATA_ORDER, epoch).permutation(count).tolist()
        else:  # on from where the last epoch has ended, or the rows behind the last whole block would never come
            order = [(epoch * length + place) % count for place in range(count)]
        for start in range(0, length, self.block_size):
            for _ in range(self.repeats):
                yield from (RowKey(epoch, index) for index in order[start : start + self.block_size])
