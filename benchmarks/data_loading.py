"""Images a second that reach the trainer: resized in its own process, in workers, or stored at the model's size.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --image_size 512 --workers 1 2 4 --clock wall

The images are JPEGs of 640 x 480. Each is decoded and resized once a step, however many completions it gets. First the
batches of all ways are compared: they must be equal. CPU time is that of the trainer's own process, for which the
training step has to wait. With workers look at wall time as well, on as many cores as there are workers.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
from measuring import clock_of, in_turns, report
from photos import PhotoProcessor, make_photos
from transformers import HfArgumentParser
from turns import make_trainer
from workload import Workload, make_model

from vision_rl import VisionRewardTrainer
from vision_rl.data.preprocessed import preprocessed


@dataclass
class LoadingArguments:
    num_photos: int = 256
    image_size: int = 224
    batch_size: int = 8
    workers: list[int] = field(default_factory=lambda: [1, 2])
    rounds: int = 3
    clock: Literal["cpu", "wall"] = "wall"


def main(args: LoadingArguments) -> list[dict]:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    workload = Workload(vit="xs", image_size=args.image_size, images=args.batch_size, length=4)
    model, processor = make_model(workload), PhotoProcessor.of_size(args.image_size)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos", args.num_photos)
        start = clock_of(kind=args.clock)()
        stored = preprocessed(photos, processor)
        seconds_to_store = clock_of(kind=args.clock)() - start

        def loader(rows: datasets.Dataset, workers: int):
            options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
            trainer = make_trainer(VisionRewardTrainer, workload, model, 1, rows, processor, **options)
            return trainer.get_train_dataloader()

        ways = {"JPEG, in its process": loader(photos, 0)}
        ways |= {f"JPEG, {workers} workers": loader(photos, workers) for workers in args.workers}
        ways["stored, in its process"] = loader(stored, 0)
        batches = {name: torch.cat([batch["pixel_values"] for batch in way]) for name, way in ways.items()}
        for name, pixel_values in batches.items():
            assert pixel_values.equal(batches["JPEG, in its process"]), f"{name} gives other images"
        seconds = in_turns(
            {name: lambda way=way: list(way) for name, way in ways.items()}, args.rounds, clock_of(kind=args.clock)
        )
        size = sum(Path(file["filename"]).stat().st_size for file in stored.cache_files)
    count = args.num_photos // args.batch_size * args.batch_size
    return [
        {
            "way": name,
            "image": args.image_size,
            "images/s": count / min(values),
            "times": min(seconds["JPEG, in its process"]) / min(values),
            "clock": args.clock,
            "to store, s": seconds_to_store if name.startswith("stored") else None,
            "on disk, MB an image": size / 1e6 / args.num_photos if name.startswith("stored") else None,
        }
        for name, values in seconds.items()
    ]


if __name__ == "__main__":
    report("data_loading", main(*HfArgumentParser(LoadingArguments).parse_args_into_dataclasses()))
