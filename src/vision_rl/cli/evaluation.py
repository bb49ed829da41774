"""`vision-rl eval`: a model and data in, the row of the paper's table out, and results as the field's servers read them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.cli import building
from vision_rl.cli.data import cheap_columns, require, rows_to_look_at
from vision_rl.cli.plain import load_plain, save_plain
from vision_rl.cli.reading import Read
from vision_rl.cli.recipe import require_folders
from vision_rl.processing import image_size, rgb_image
from vision_rl.task import load_processor


def evaluate(given: Read) -> Callable[[], None]:
    args, data = given.own
    if args.model is None:
        raise ValueError("vision-rl eval needs --model: the output_dir of `vision-rl mle` or `vision-rl tune`.")
    require_folders([args.model])
    if args.shard_size < 1:
        raise ValueError(f"shard_size must be positive; it is {args.shard_size}.")
    processor = building.with_options(load_processor(args.model, given.task, args.model_revision), given.options)
    rows = require(rows_to_look_at(given, args.split), f"of the split {args.split}", data, given.task)
    folder = Path(args.output_dir or building.folder_of(args.model) / "eval")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = VisionMLETrainer(
        model=args.model,
        args=VisionMLEConfig(
            str(folder),
            per_device_eval_batch_size=args.batch_size,
            dataloader_num_workers=args.workers,
            bf16=args.bf16,
            use_cpu=args.use_cpu,
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs=building.at_revision(args),
        ),
        eval_dataset=rows,  # looked at before an hour of answers
        processing_class=processor,
        completion_decoder=building.completion_decoder(processor, args),
    )
    identity = _identity(args.model, args.model_revision, rows, args.shard_size)
    shards = Shards(folder / "shards", identity, len(rows), args.shard_size)
    return lambda: _evaluate(trainer, given, rows, folder, shards)


def _evaluate(trainer: VisionMLETrainer, given: Read, rows: Any, folder: Path, shards: "Shards") -> None:
    """Shard after shard, all ranks on each; what an earlier run has finished is not answered again."""
    args = given.own[0]
    metric = given.task.make_metric(trainer.processor)
    for start, path in shards.missing():
        part = rows.select(range(start, min(start + args.shard_size, len(rows))))
        answers = trainer.predict(part)
        if trainer.is_world_process_zero():
            save_plain({"predictions": answers.predictions, "references": answers.label_ids}, path)
            print(f"{min(start + args.shard_size, len(rows))} of {len(rows)} images", flush=True)
        trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    described = _described(rows, trainer.processor)
    given.task.save_results(Predictions(shards), described, trainer.processor, folder)
    scores = {name: value for name, value in shards.metrics(metric).items() if isinstance(value, Number)}
    row = {"model": str(args.model), "split": args.split, "images": len(rows), **scores}
    (folder / "metrics.json").write_text(json.dumps(row, indent=1) + "\n")
    print(table(scores))
    print(f"Written to {folder}: metrics.json, and the results in the files that the usual evaluation programs read.")


def table(scores: dict[str, Any]) -> str:
    """The numbers in a table of one row, as Markdown has it."""
    cells = [f"{value:.4f}" for value in scores.values()]
    widths = [max(len(name), len(cell)) for name, cell in zip(scores, cells, strict=True)]
    lines = [list(scores), ["-" * width for width in widths], cells]
    return "\n".join(
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


class Shards:
    """The answers of an evaluation on disk with their references, a file so many images.

    Args:
        folder: of the files.
        identity: tells model and data; those of others are refused.
        num_rows: images of the data set.
        size: images of a shard.

    Raises:
        ValueError: where the folder has the answers of another model or other data.
    """

    def __init__(self, folder: Path, identity: str, num_rows: int, size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{start:08d}.pt" for start in range(0, num_rows, size)]
        self.size = size
        note = folder / "of.txt"
        if note.is_file() and note.read_text() != identity:
            raise ValueError(
                f"{folder} has answers of another model, other data or another shard_size: delete it, or give another "
                "output_dir."
            )
        note.write_text(identity)

    def missing(self) -> list[tuple[int, Path]]:
        """The first row and the file of each shard that is not there."""
        return [(index * self.size, path) for index, path in enumerate(self.paths) if not path.is_file()]

    def read(self) -> Iterator[dict[str, list]]:
        """Each shard's content."""
        return map(load_plain, self.paths)

    def metrics(self, metric: Any) -> dict[str, Any]:
        """The metrics over all images."""
        if hasattr(metric, "per_image"):  # of maps it keeps matches, so that one shard's maps are in memory
            return metric.summary([image for shard in self.read() for image in metric.per_image(**shard)])
        predictions, references = [], []
        for shard in self.read():
            predictions += shard["predictions"]
            references += shard["references"]
        return metric(predictions=predictions, references=references)


class Predictions(Sequence):
    """All answers in order, of which one shard at a time is in memory."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.length = sum(len(shard["predictions"]) for shard in shards.read())

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator:
        return (answer for shard in self.shards.read() for answer in shard["predictions"])

    def __getitem__(self, index: Any) -> Any:
        shard = load_plain(self.shards.paths[index // self.shards.size])
        return shard["predictions"][index % self.shards.size]


def _described(rows: Any, processor: Any) -> list[dict]:
    """Each row's `image_id` and `image_size`, with its other cheap columns."""
    cheap = cheap_columns(rows, processor)
    described = [dict(row) for row in cheap] if cheap.column_names else [{} for _ in range(len(rows))]
    for index, (row, image) in enumerate(zip(described, rows["image"], strict=True)):
        row["image_size"] = image_size(rgb_image(image, index))
        row.setdefault("image_id", index)
    return described


def _identity(model: str, revision: str | None, rows: Any, shard_size: int) -> str:
    """What an evaluation is of: names, sizes and times of model, data and shards, and the commit of a model on the Hub."""
    weights = sorted(Path(model).glob("*.safetensors"))
    commit = None if Path(model).is_dir() else HfApi().resolve_revision(model, revision=revision).resolved
    facts = [str(model), commit, rows._fingerprint, len(rows), shard_size]
    facts += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
