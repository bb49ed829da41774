"""Load a folder of photos as rows, without annotations."""

import os
from pathlib import Path

import datasets
from PIL import Image
from PIL.ImageFile import StubImageFile

from vision_rl.data.bad_rows import BadRows, OnBadRow
from vision_rl.data.coco_images import image_column
from vision_rl.data.image_files import find_images
from vision_rl.data.stored_rows import Rows, stored_rows


def load_photos(
    images_dir: str | Path, *, on_bad_row: OnBadRow = "raise", follow_symlinks: bool = False
) -> datasets.Dataset:
    """Load the photos in a folder and its subfolders (ImageNet's `train/n01440764/x.JPEG`), in the order of paths.

    Photos are files whose names have the ending of a format that Pillow decodes; hidden files and folders are skipped. Photos
    are listed once, and the list is kept on disk, as in `load_coco_detection`, until a photo or a folder changes.
    Photos are not opened.

    Args:
        images_dir: the folder.
        on_bad_row: "raise" an error that counts the photos that are refused, or "skip" them, with a warning that
            counts them.
        follow_symlinks: whether photos may be symbolic links to files outside of the folder, and folders may be links.

    Returns:
        A data set with the column `image`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no photo in the folder, and for photos that are empty or links out of the folder.
    """
    root = os.path.abspath(images_dir)
    settings = {"bad": on_bad_row, "links": follow_symlinks}
    bad_rows = BadRows(images_dir, on_bad_row)

    def make() -> Rows:
        names, folders = _photos_in(root, follow_symlinks)
        found = find_images(root, names, bad_rows, "photos", follow_symlinks)
        paths = [path for path in found if path is not None]
        empty = {path for path in paths if os.path.getsize(path) == 0}
        for path in sorted(empty):
            bad_rows.add("photos", "are empty files", path)
        notes = bad_rows.settle({"photos": len(names)})
        paths = [path for path in paths if path not in empty]
        if not paths:
            raise ValueError(f"There are no photos in {images_dir}.")
        # The folders are recorded too: the time of a folder changes with its list of files.
        return Rows({"image": image_column(paths)}, datasets.Features({"image": datasets.Image()}), notes, folders)

    return stored_rows("photos", root, settings, make)


def _is_decoded(kind: str) -> bool:
    """Whether Pillow decodes files of a format; some it only writes, as PDF, and of some it knows only the head."""
    reader = Image.OPEN.get(kind, (None,))[0]
    is_stub = kind == "MPEG" or (isinstance(reader, type) and issubclass(reader, StubImageFile))
    return reader is not None and not is_stub


def _photos_in(root: str, follow_symlinks: bool) -> tuple[list[str], list[str]]:
    """Return the photos' paths relative to `root`, sorted, and the paths of all folders."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if _is_decoded(kind)}
    names, folders = [], []
    for folder, inner, files in os.walk(root, followlinks=follow_symlinks):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folders.append(folder)
        below = os.path.relpath(folder, root)
        names += [
            os.path.normpath(os.path.join(below, name))
            for name in files
            if os.path.splitext(name)[1].lower() in endings and not name.startswith(".")
        ]
    return sorted(names), folders
