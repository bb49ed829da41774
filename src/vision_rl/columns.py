"""Whole columns of a data set, read before training: out of its Arrow table where there is one, so that no image is decoded."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


CHUNK = 10_000  # rows at once
NUM_SAMPLED_ROWS = 200  # whose images are opened


def arrow_chunks(dataset, column: str) -> Iterator[tuple[int, pa.Array]] | None:
    """Pieces of a stored column, each with the number of its first row; `None` where rows are made otherwise.

    A transform (`with_transform`) may change any column of a row, so what is stored is not what it gives.
    """
    if not _is_stored(dataset, column):
        return None
    tables = dataset.select_columns(column).with_format("arrow").iter(CHUNK)
    return ((number * CHUNK, table[column].combine_chunks()) for number, table in enumerate(tables))


def _is_stored(dataset, column: str) -> bool:
    """Whether a row's column is what a table of `datasets` stores."""
    datasets = sys.modules.get("datasets")  # where nobody has imported it, nothing is one of its data sets
    if datasets is None or not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return False
    return column in dataset.column_names


def sampled_rows(dataset) -> range:
    """Numbers of some rows, evenly spread."""
    return range(0, len(dataset), -(-len(dataset) // NUM_SAMPLED_ROWS))


def column_values(dataset, column: str, sample: bool = True) -> Iterator[tuple[int, Any]]:
    """Row numbers and values of a column: of all rows of a table or a list; of others of some, or of all if not `sample`."""
    chunks = arrow_chunks(dataset, column)
    if chunks is not None:
        for first, values in chunks:
            yield from enumerate(values.to_pylist(), first)
        return
    every = not sample or isinstance(dataset, list | tuple)
    for row in range(len(dataset)) if every else sampled_rows(dataset):
        yield row, row_value(dataset[row], column, row)


def row_value(columns, column: str, row: int) -> Any:
    """The value of a row's column. Raises `ValueError` with the row's number where it has none."""
    if column not in columns:
        raise ValueError(f"Row {row} has no column `{column}`; it has {', '.join(f'`{name}`' for name in columns)}.")
    return columns[column]


def stored_pictures(dataset, column: str) -> Iterator[tuple[int, Any]]:
    """Row numbers and pictures of a table or a list, none of them read; of one with stored bytes `True` stands for it."""
    if _is_stored(dataset, column):
        pictures = [picture for chunk in dataset.data.column(column).chunks for picture in _pictures_of(chunk)]
        order = range(len(pictures)) if dataset._indices is None else dataset._indices.column(0).to_pylist()
        yield from enumerate(pictures[place] for place in order)
    elif isinstance(dataset, list | tuple):
        yield from column_values(dataset, column)


def _pictures_of(values: pa.Array) -> list:
    """Return for each row a path, None where there is no picture, and True for all else."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.to_pylist()
    kind = values.type
    fields = (
        {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    )
    if set(fields) != {"bytes", "path"} or not pa.types.is_binary(fields["bytes"]):
        return [True if there else None for there in values.is_valid().to_pylist()]
    has_bytes = pc.greater(pc.binary_length(pc.struct_field(values, "bytes")), 0).fill_null(False).to_pylist()
    paths = pc.struct_field(values, "path").to_pylist()
    return [True if stored else path for stored, path in zip(has_bytes, paths, strict=True)]


def has_no_values(dataset, column: str) -> bool:
    """Whether a column is None in all rows, as that of labels which are not published; no picture is opened in a table."""
    if _is_stored(dataset, column):
        nulls = dataset.data.column(column).is_null()
        rows = slice(None) if dataset._indices is None else dataset._indices.column(0).to_numpy()
        return bool(nulls.to_numpy()[rows].all())
    try:
        return all(value is None for _, value in column_values(dataset, column))
    except Exception:  # a row that cannot be read is told, or skipped, where it is used
        return False


class UnusableRows(ValueError):
    """Rows of a data set that cannot be used, told together.

    Args:
        rows: their numbers.
        fault: where the first of them is wrong, and how.
        num_rows: how many rows there are in all.
    """

    def __init__(self, rows: Sequence[int], fault: str, num_rows: int):
        super().__init__(f"Row {rows[0]}, {fault} ({len(rows)} of {num_rows} rows cannot be used.)")
        self.rows, self.fault = rows, fault


def check_values(
    values: Iterator[tuple[int, Any]], column: str, num_rows: int, check: Callable[[Any], object]
) -> None:
    """Raise one `UnusableRows` for all the values that `check` raises a `ValueError` for: the first is told, and their number."""
    bad: list[int] = []
    first = None
    for row, value in values:
        try:
            check(value)
        except ValueError as error:
            bad.append(row)
            first = first or error
    if first is not None:
        raise UnusableRows(bad, f"column `{column}`: {first}", num_rows) from first


# --- nested columns as flat arrays ----------------------------------------------------------------------------------


def flat_fields(chunk: pa.Array) -> dict[str, tuple[np.ndarray, pa.Array]]:
    """Return for each field the number of entries of each row, -1 for none, and all rows' entries in one array."""
    if pa.types.is_struct(chunk.type):  # a dict of lists
        names = [chunk.type.field(i).name for i in range(chunk.type.num_fields)]
        lists = {name: field for name, field in zip(names, chunk.flatten(), strict=True) if is_list(field.type)}
        return {name: (list_lengths(field), field.flatten()) for name, field in lists.items()}
    if is_list(chunk.type) and pa.types.is_struct(chunk.type.value_type):  # a list of dicts
        objects, lengths = chunk.flatten(), list_lengths(chunk)
        names = [objects.type.field(i).name for i in range(objects.type.num_fields)]
        return {name: (lengths, field) for name, field in zip(names, objects.flatten(), strict=True)}
    return {}


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def list_lengths(lists: pa.Array) -> np.ndarray:
    return pc.list_value_length(lists).cast(pa.int64()).fill_null(-1).to_numpy()


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
