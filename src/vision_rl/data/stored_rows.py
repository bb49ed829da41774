"""Make rows from files once and store them on disk as Arrow, which all processes and later runs memory-map."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from filelock import FileLock

from vision_rl.data.image_files import state_of


logger = logging.getLogger(__name__)

_VERSION = 2  # raise this number when the loaders make other rows from the same files
_ROWS_PER_BATCH = 1000  # the batch size that `datasets` writes; a row is found by its batch
_KNOWN = b"vision_rl"  # the key of the notes and of the state of the image files in the table's metadata


@dataclass
class Rows:
    """The rows that a loader makes, and notes about them.

    Args:
        columns: an Arrow array for each column, of the type of the column's feature.
        features: the features of the columns.
        notes: sentences about the rows, logged as warnings at every start.
        left_out: files that the loader has checked and that are in no row.
    """

    columns: dict[str, pa.Array]
    features: datasets.Features
    notes: list[str] = field(default_factory=list)
    left_out: Sequence[str] = ()


def stored_rows(kind: str, source: str | Path, settings: dict[str, Any], make: Callable[[], Rows]) -> datasets.Dataset:
    """Return the stored rows of the file or folder `source`; if there are none, call `make` and store its rows.

    The rows lie in the cache of `datasets` (`HF_DATASETS_CACHE`), under a name that depends on `kind`, the settings,
    and the path, size and time of the source. The first process makes the rows while the others wait. The rows are
    made anew if one of the image files has changed. If the cache cannot be written, the rows stay in memory, with a
    warning.
    """
    path = _path_of(kind, source, settings)
    found = _opened(path)
    if found is None:
        with one_process_first(path):
            found = _opened(path) or _written(make(), path)
    rows, notes = found
    for note in notes:
        logger.warning(note)
    return rows


def _path_of(kind: str, source: str | Path, settings: dict[str, Any]) -> Path:
    source = Path(os.path.abspath(source))
    stat = source.stat() if source.exists() else None
    state = None if stat is None else [stat.st_size, stat.st_mtime_ns]
    key = json.dumps([_VERSION, kind, str(source), state, settings], sort_keys=True)
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "vision_rl" / f"{kind}-{digest}.arrow"


def _opened(path: Path) -> tuple[datasets.Dataset, list[str]] | None:
    """Return the stored rows and their notes, or None if they are missing or cut, or if an image file has changed."""
    if not path.is_file():
        return None
    try:
        with pa.ipc.open_stream(str(path)) as stream:
            known = json.loads(stream.schema.metadata[_KNOWN])
        rows = datasets.Dataset.from_file(str(path))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError):  # the file is cut, or another program's
        return None
    if len(rows) != known["num_rows"]:  # a stream may be cut between two batches
        return None
    state = state_of([*_files(rows.data), *known["left_out"]])
    return (rows, known["notes"]) if state == known["state"] else None


@contextmanager
def one_process_first(path: Path | None) -> Iterator[None]:
    """Let one process at a time run the context, so that the first makes the file `path` and the others find it.

    If `path` is `None` or the disk has no locks, all processes run the context at once.
    """
    with ExitStack() as held:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{path}.lock"))
        except (OSError, NotImplementedError):  # nothing can be written or locked there
            pass
        yield


def _written(made: Rows, path: Path) -> tuple[datasets.Dataset, list[str]]:
    schema = made.features.arrow_schema
    table = pa.table([made.columns[name].cast(schema.field(name).type) for name in schema.names], names=schema.names)
    known: dict[str, Any] = {"notes": made.notes, "left_out": list(made.left_out), "num_rows": len(table)}
    known["state"] = state_of([*_files(table), *known["left_out"]])
    table = table.replace_schema_metadata({**schema.metadata, _KNOWN: json.dumps(known).encode()})
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)
        os.replace(aside, path)
        return datasets.Dataset.from_file(str(path)), made.notes
    except OSError as error:
        aside.unlink(missing_ok=True)
        logger.warning(
            f"The rows cannot be stored as {path} ({error}): they are kept in memory, and made again at every start. "
            "Set HF_DATASETS_CACHE to another folder."
        )
        return datasets.Dataset(datasets.table.InMemoryTable(table)), made.notes


def _files(table: Any) -> list[str]:
    """Return the paths of the image files of all rows, column by column."""
    files: list[str] = []
    for name in table.schema.names:
        if table.schema.field(name).type == datasets.Image().pa_type:
            for chunk in table.column(name).chunks:
                files += chunk.field("path").to_pylist()
    return files
