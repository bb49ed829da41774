"""`vision-rl predict`: images in, their answers and drawings out."""

import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl import VisionPipeline, pipeline
from vision_rl.cli.arguments import require_positive
from vision_rl.cli.reading import Read
from vision_rl.cli.recipe import require_folders
from vision_rl.pictures import rgb_image


IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def predict(given: Read) -> Callable[[], None]:
    (args,) = given.own
    if args.model is None or not args.images:
        raise ValueError(
            "vision-rl predict needs a model and images: --model FOLDER --images photo.jpg folder 'more/*.png'."
        )
    require_positive(args, "batch_size")
    require_folders([args.model])
    folder = Path(args.output_dir)
    paths = find_images(args.images, folder)
    require_readable(paths)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = pipeline(args.model, given.named, args.batch_size, args.use_cpu, args.model_revision)
    return lambda: _predict(pipe, paths, folder, args.batch_size, args.draw)


def find_images(names: Sequence[str], output: Path) -> list[Path]:
    """The files that names, folders and globs mean, each once, in order, without those in the folder `output`.

    A folder means the photos in it and below, but for hidden ones. What is written to `output` might otherwise replace a
    photo, or be answered itself when the command is run again.

    Raises:
        FileNotFoundError: for a name that means none.
        ValueError: for a name that means only files in `output`.
    """
    found: dict[Path, None] = {}
    left_out, results = 0, output.resolve()
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_photo(file.relative_to(path)) and file.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        if not files:
            raise FileNotFoundError(f"There is no image at {name}.")
        outside = [file for file in files if not _is_in(file, results)]
        if not outside:
            raise ValueError(
                f"Every image at {name} is in {output}, the folder of the results, which might replace it: give another "
                "output_dir."
            )
        left_out += len(files) - len(outside)
        found |= dict.fromkeys(outside)
    if left_out:
        print(f"Left out {left_out} images in {output}, the folder of the results.", flush=True)
    return list(found)


def _is_photo(file: Path) -> bool:
    """Whether a path within a folder is one of a photo, and nothing of it is hidden, as some systems' copies of a file are."""
    return file.suffix.lower() in IMAGES and not any(part.startswith(".") for part in file.parts)


def _is_in(file: Path, folder: Path) -> bool:
    """Whether a file, or the one that it is a link to, is in a folder or below; the folder's path is a resolved one."""
    return any(folder in place.parents for place in (file.parent.resolve() / file.name, file.resolve()))


def require_readable(paths: Sequence[Path]) -> None:
    """Read the header of each file, which is quick; a damaged rest shows only when a picture is decoded.

    Raises:
        ValueError: for files that are no pictures, with the first of them.
    """
    unreadable = []
    for path in paths:
        try:
            Image.open(path).close()
        except Exception as error:  # Pillow's plugins raise errors of many kinds
            unreadable.append(f"{path} ({error})")
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(paths)} images cannot be read: {', '.join(unreadable[:3])}"
            f"{', ...' if len(unreadable) > 3 else ''}. Leave them out."
        )


def _predict(pipe: VisionPipeline, paths: list[Path], folder: Path, batch_size: int, draw: bool) -> None:
    """Answer what can be read; a file that cannot is told, and makes the exit status 1 once the others are written."""
    named = list(zip(paths, _distinct_names(paths), strict=True))
    answers: list[Any] = []
    rows: list[dict[str, Any]] = []
    not_drawn = 0
    for start in range(0, len(named), batch_size):
        part = list(enumerate(named[start : start + batch_size], start))
        opened = [(path, name, _opened(path, place)) for place, (path, name) in part]
        batch = [(path, name, image) for path, name, image in opened if image is not None]
        for (path, name, image), answer in zip(batch, pipe([image for _, _, image in batch]), strict=True):
            if draw and not _drawn(pipe, image, answer, path, folder / f"{name}.png"):
                not_drawn += 1
            rows.append({"image_id": name, "image_size": image.size, "file_name": str(path)})
            answers.append(answer)
    unreadable = len(paths) - len(rows)
    if rows:
        pipe.task.save_results(answers, rows, pipe.processor, folder)
    told = f"; left out {unreadable} that cannot be read" if unreadable else ""
    told += f"; {not_drawn} could not be drawn" if not_drawn else ""
    print(f"Written to {folder}: the answers to {len(rows)} images{told}.")
    if told:
        raise SystemExit(1)


def _opened(path: Path, place: int) -> Image.Image | None:
    """The picture of a file; None, with a line that says why, for one that cannot be decoded."""
    try:
        return rgb_image(path, place)
    except ValueError as error:
        print(f"vision-rl predict: {error}", file=sys.stderr, flush=True)
        return None


def _drawn(pipe: VisionPipeline, image: Image.Image, answer: Any, path: Path, drawing: Path) -> bool:
    """Draw an answer into its image; False, with a line that says why, for an image that no drawing can be made of."""
    try:
        picture = pipe.draw(image, answer)
    except ValueError as error:  # such as a panorama that is wider than a drawing may be
        print(f"vision-rl predict: the answer to {path} cannot be drawn: {error}", file=sys.stderr, flush=True)
        return False
    picture.save(drawing)
    return True


def _distinct_names(paths: list[Path]) -> list[str]:
    """The files' names without their endings. Equal names get a number."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names
