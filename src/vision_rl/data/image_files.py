"""Find the image files that annotations name, inside of their folder only, and read the headers of the files."""

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from vision_rl.data.bad_rows import BadRows


_NUM_THREADS = 16  # reading headers waits for the disk more than it computes
_NUM_PER_TASK = 256


def find_images(
    folder: str | Path,
    names: Sequence[str | None],
    bad_rows: BadRows,
    noun: str = "images",
    follow_symlinks: bool = False,
    one_each: bool = False,
) -> list[str | None]:
    """Return the path of each name below `folder`; a name without a usable file gives `None` and goes to `bad_rows`.

    A name that is `None` stays `None`. A name may be written as on Windows, be quoted as in a URL, or begin with
    folders that `folder` does not have, as tools export names. No name may leave the folder: `..` and absolute paths
    are refused, and so are symbolic links out of the folder, unless `follow_symlinks`. With `one_each` a file that
    several names mean is refused to all of them: its labels are spread over several rows, and each row would say that
    there is nothing where another has a label.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"There is no folder {folder}.")
    inside = _Inside(root, follow_symlinks)
    paths: list[str | None] = []
    shortened = set()
    for place, name in enumerate(names):
        if name is None:
            paths.append(None)
            continue
        candidates = [os.path.normpath(os.path.join(root, one)) for one in _spellings(name)]
        found = next((path for path in candidates if _is_file(path)), None)
        if not all(path.startswith(os.path.join(root, "")) for path in candidates):
            bad_rows.add(noun, "have a file name that leads out of its folder", f"{name!r} from {root}")
            found = None
        elif found is None:
            bad_rows.add(noun, "are not there", candidates[0], missing=True)
        elif not inside(found):
            told = "are symbolic links out of their folder (follow_symlinks=True allows them)"
            bad_rows.add(noun, told, f"{found} to {os.path.realpath(found)}")
            found = None
        elif found not in candidates[:2]:
            shortened.add(place)
        paths.append(found)
    times = Counter(paths)
    owners = Counter(path for place, path in enumerate(paths) if place not in shortened)
    for place, path in enumerate(paths):
        if path is None or times[path] == 1:
            continue
        if place in shortened:
            told = "do not exist under their name, and the file that they may mean belongs to another"
            bad_rows.add(noun, told, f"{names[place]!r} may mean {path}")
            paths[place] = None
        elif one_each and owners[path] > 1:
            told = (
                "share their file with another, whose objects would count as absent in them (give a file one id, with all "
                "of its annotations)"
            )
            bad_rows.add(noun, told, f"{names[place]!r} is {path}")
            paths[place] = None
    return paths


def _spellings(name: str) -> Iterator[str]:
    """Yield the possible paths of a name: unchanged, then unquoted with "/" as separator, then with fewer folders."""
    yield name
    plain = os.path.normpath(unquote(name.replace("\\", "/")))
    yield plain
    parts = plain.split("/")
    yield from ("/".join(parts[start:]) for start in range(1, len(parts)))


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # characters that no path can have
        return False


class _Inside:
    """Tells whether a file is still in the folder `root` when symbolic links are followed."""

    def __init__(self, root: str, follow_symlinks: bool):
        self.root = os.path.join(os.path.realpath(root), "")
        self.follow_symlinks = follow_symlinks
        self.folders: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        if self.follow_symlinks:
            return True
        if os.path.islink(path):
            return os.path.realpath(path).startswith(self.root)
        folder = os.path.dirname(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.join(os.path.realpath(folder), "").startswith(self.root)
        return self.folders[folder]


@dataclass(frozen=True)
class Headers:
    """The headers of n files: `sizes (n, 2)`, width and height as stored, and the EXIF `orientation (n,)`.

    The size of a file that was not read is 0, and the orientation of a file without EXIF is 1.
    """

    sizes: np.ndarray
    orientation: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """A mask `(n,)` of the files that were read."""
        return self.sizes.min(1, initial=1) > 0

    @property
    def shown(self) -> np.ndarray:
        """Width and height `(n, 2)` of the pictures as `datasets` decodes them, turned by their orientation."""
        return np.where(self.orientation[:, None] >= 5, self.sizes[:, ::-1], self.sizes)


def read_headers(paths: Sequence[str | None], bad_rows: BadRows, noun: str = "images") -> Headers:
    """Read size and orientation of each file without decoding it; files that are no pictures go to `bad_rows`."""
    Image.preinit()
    parts = [paths[start : start + _NUM_PER_TASK] for start in range(0, len(paths), _NUM_PER_TASK)]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        read = [header for part in pool.map(_headers, parts) for header in part]
    table = np.zeros((len(paths), 3), np.int64)
    table[:, 2] = 1
    for place, (path, header) in enumerate(zip(paths, read, strict=True)):
        if isinstance(header, str):
            bad_rows.add(noun, "cannot be read", f"{path} ({header})")
        elif header is not None:
            table[place] = header
    return Headers(table[:, :2], table[:, 2])


def _headers(paths: Sequence[str | None]) -> list[tuple[int, int, int] | str | None]:
    return [None if path is None else _header(path) for path in paths]


def _header(path: str) -> tuple[int, int, int] | str:
    """Return the width, height and orientation of a file, or the reason why it cannot be read."""
    try:
        with Image.open(path) as image:
            # PNG's own `getexif` decodes the picture to find EXIF behind the pixels, where there is rarely any.
            told = not isinstance(image, PngImageFile) or "exif" in image.info or _has_late_texts(path)
            exif = image.getexif() if told else Image.Image.getexif(image)
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            orientation = int(orientation) if orientation in range(2, 9) else 1
            if isinstance(image, TiffImageFile):  # Pillow turns TIFFs itself, and `image.size` is the turned size
                return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH], orientation
            return *image.size, orientation
    except Image.DecompressionBombError as error:
        return f"{error} PIL.Image.MAX_IMAGE_PIXELS is the limit"
    except Exception as error:  # Pillow's readers of broken files raise whatever they stumble over
        return str(error) or type(error).__name__


def _has_late_texts(path: str) -> bool:
    """Return whether a PNG has texts or EXIF behind its pixels."""
    with open(path, "rb") as file:
        file.seek(8)
        behind = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind |= kind == b"IDAT"
            if behind and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def state_of(paths: Sequence[str]) -> str:
    """Return a digest of the files' sizes and times, which changes if a file changes, appears or disappears."""
    states = np.full((len(paths), 2), -1, np.int64)
    for place, path in enumerate(paths):
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            continue
        states[place] = stat.st_size, stat.st_mtime_ns
    return hashlib.blake2b(states.tobytes(), digest_size=16).hexdigest()
