"""`manifest.json`: what a saved folder holds, so that a missing, cut or altered file is noticed before it is used."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


MANIFEST = "manifest.json"
CARD = "README.md"  # a model's, which its owner may edit: no manifest lists it
TRAINING_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt")  # what only a resumed training reads of a checkpoint
_VERSION = 1
_CHUNK = 1 << 22


class DamagedFolder(ValueError):
    """A saved folder that is not what was saved: the message names the folder, the file and what is wrong with it."""


def write_manifest(folder: str | Path, **facts: Any) -> None:
    """List all files below `folder` with their sizes and SHA-256 digests in its `manifest.json`, and flush them to the disk.

    Written last, it says that the folder is whole. Call it again for a folder that was changed on purpose.

    Args:
        folder: what was saved.
        facts: what else is to be known about it, in JSON's types.
    """
    folder = Path(folder)
    names = names_below(folder)
    with ThreadPoolExecutor(_num_threads()) as threads:
        files = dict(zip(names, threads.map(lambda name: _entry(folder / name, flush=True), names), strict=True))
    content = json.dumps({"version": _VERSION, **facts, "files": files}, indent=1) + "\n"
    with open(folder / MANIFEST, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)


def names_below(folder: Path) -> list[str]:
    """Return the names of the files that a manifest of the folder lists."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name not in (MANIFEST, CARD)]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The content of the folder's `manifest.json`.

    Raises:
        DamagedFolder: if there is none, or it is none.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedFolder(
            f"{folder} has no {MANIFEST}: saving was interrupted, or vision_rl did not save it."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFolder(f"{folder} is damaged: {MANIFEST} cannot be read ({error}).") from None
    if not isinstance(content, dict) or not _lists_files(content.get("files")):
        raise DamagedFolder(f"{folder} is damaged: {MANIFEST} lists no files.")
    if content.get("version") != _VERSION:
        raise DamagedFolder(
            f"{folder} has a {MANIFEST} of version {content.get('version')!r}, but this vision_rl reads version {_VERSION}."
        )
    return content


def part_of(folder: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """The content of the manifest that the folder would have with these of its files alone."""
    files = read_manifest(folder)["files"]
    return {"version": _VERSION, "files": {name: files[name] for name in names}}


def check_whole(folder: str | Path, within: str = "", without: Iterable[str] = ()) -> dict[str, Any]:
    """Compare every file that the manifest lists with its digest. Files that it does not list are none of its business.

    Args:
        folder: where `manifest.json` lies.
        within: only what lies in this folder below it.
        without: files that need not be read, such as an optimizer's where only the model is wanted.

    Returns:
        The manifest.

    Raises:
        DamagedFolder: naming the first file that is missing, or is not what was saved.
    """
    folder, content = Path(folder), read_manifest(folder)
    prefix, without = f"{within}/" if within else "", set(without)
    names = [name for name in content["files"] if name.startswith(prefix) and name not in without]
    with ThreadPoolExecutor(_num_threads()) as threads:
        damages = list(threads.map(lambda name: _damage(folder, name, content["files"][name]), names))
    for name, damage in zip(names, damages, strict=True):
        if damage is not None:
            raise DamagedFolder(f"{folder} is damaged: {name} {damage}.")
    return content


@contextmanager
def loading(path: str | Path, without: Iterable[str] = ()) -> Iterator[None]:
    """Around what loads a saved folder, or a part of one such as `stage1/`: any error of it names the folder.

    First the files are compared with the manifest of the folder, or of one of the two above it, that lists them; names on
    the Hub and folders from elsewhere have none.

    Args:
        path: what is loaded.
        without: files that are not read.

    Raises:
        DamagedFolder: naming the first file that is missing, or is not what was saved; or with the error of the block.
            An OSError stays one.
    """
    path = Path(path)
    if path.is_dir():
        for folder in (path.absolute(), *path.absolute().parents[:2]):
            if (folder / MANIFEST).is_file() and not _is_of_others(folder / MANIFEST):
                within = path.absolute().relative_to(folder).as_posix()
                check_whole(folder, "" if within == "." else within, without)
                break
    with naming(path):
        yield


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Make any error of loading `path` name it: an OSError stays one, others become a `DamagedFolder`."""
    try:
        yield
    except (OSError, DamagedFolder):
        raise
    except Exception as error:
        if str(path) in str(error) and isinstance(error, ValueError | TypeError):
            raise
        raise DamagedFolder(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def flush_folder(folder: str | Path) -> None:
    """Make the names in a folder outlast a loss of power, where the system has a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_of_others(path: Path) -> bool:
    """Other programs, such as web pages, have a `manifest.json` too."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or "files" not in content


def _num_threads() -> int:
    return min(4, os.cpu_count() or 1)  # a digest releases the interpreter's lock


def _entry(path: Path, flush: bool = False) -> dict[str, int | str]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _damage(folder: Path, name: str, expected: dict) -> str | None:
    """What is wrong with a file that the manifest lists; `None`: nothing."""
    path = folder / name
    if not Path(os.path.normpath(path)).is_relative_to(
        os.path.normpath(folder)
    ):  # by name: the Hub's cache is of links
        return f"lies outside of the folder, by {MANIFEST}"
    if not path.is_file():
        return f"is missing, by {MANIFEST}"
    size = path.stat().st_size
    if size != expected["size"]:
        return f"has {size} bytes, but {MANIFEST} lists {expected['size']}"
    try:
        return None if _entry(path) == expected else f"does not have the content that {MANIFEST} lists (SHA-256)"
    except OSError as error:
        return f"cannot be read ({error})"


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )
