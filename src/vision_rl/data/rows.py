"""A look at a data set's rows before training: at whole columns where that is cheap, at some rows where it is not."""

from collections.abc import Iterator
from typing import Any

import datasets


NUM_SAMPLED_ROWS = 200  # whose images are opened


def column_values(dataset, column: str, sample: bool = True) -> Iterator[tuple[int, Any]]:
    """Row numbers and values of one column: of all rows where that decodes no images; else of some, or all if not `sample`.

    A transform (`with_transform`) may want whole rows and change any of their columns, so it is given whole rows.
    """
    plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    if plain and column in dataset.column_names:
        yield from enumerate(row[column] for row in dataset.select_columns(column))
        return
    every = not sample or isinstance(dataset, list | tuple)
    yield from ((index, dataset[index][column]) for index in (range(len(dataset)) if every else sampled_rows(dataset)))


def sampled_rows(dataset) -> range:
    """Numbers of some rows, evenly spread."""
    return range(0, len(dataset), -(-len(dataset) // NUM_SAMPLED_ROWS))
