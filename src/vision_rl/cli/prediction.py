"""`vision-rl predict`: images in, their answers and drawings out."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vision_rl import VisionPipeline, pipeline
from vision_rl.cli.reading import Read
from vision_rl.cli.recipe import require_folders
from vision_rl.processing import rgb_image


IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def predict(given: Read) -> Callable[[], None]:
    (args,) = given.own
    if args.model is None or not args.images:
        raise ValueError(
            "vision-rl predict needs a model and images: --model FOLDER --images photo.jpg folder 'more/*.png'."
        )
    require_folders([args.model])
    paths = find_images(args.images)
    pipe = pipeline(args.model, given.named, args.batch_size, args.use_cpu, args.model_revision)
    return lambda: _predict(pipe, paths, Path(args.output_dir), args.batch_size, args.draw)


def find_images(names: Sequence[str]) -> list[Path]:
    """The files that names, folders and globs mean, each once, in order.

    Raises:
        FileNotFoundError: for one that means none.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        if not files:
            raise FileNotFoundError(f"There is no image at {name}.")
        found |= dict.fromkeys(files)
    return list(found)


def _predict(pipe: VisionPipeline, paths: list[Path], folder: Path, batch_size: int, draw: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = _distinct_names(paths)
    answers: list[Any] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), batch_size):
        images = [rgb_image(path, start + place) for place, path in enumerate(paths[start : start + batch_size])]
        for image, answer in zip(images, pipe(images), strict=True):
            name = names[len(rows)]
            if draw:
                pipe.draw(image, answer).save(folder / f"{name}.png")
            rows.append({"image_id": name, "image_size": image.size, "file_name": str(paths[len(rows)])})
            answers.append(answer)
    pipe.task.save_results(answers, rows, pipe.processor, folder)
    print(f"Written to {folder}: the answers to {len(paths)} images.")


def _distinct_names(paths: list[Path]) -> list[str]:
    """The files' names without their endings. Equal names get a number."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names
