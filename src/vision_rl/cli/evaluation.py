"""`vision-rl eval`: a model and data in, the row of the paper's table out, and results as the field's servers read them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.cli import building
from vision_rl.cli.arguments import require_positive
from vision_rl.cli.data import cheap_columns, require, rows_to_look_at, split_to_look_at
from vision_rl.cli.plain import load_plain, save_plain
from vision_rl.cli.reading import Read
from vision_rl.cli.recipe import require_folders
from vision_rl.pictures import rgb_image
from vision_rl.processing import image_size
from vision_rl.task import load_processor
from vision_rl.trainer.metric_functions import as_metric, scalars_of


MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "config.json", "generation_config.json", "adapter_config.json")
HOW_IT_WAS_LOADED = ("is_local", "local_files_only", "name_or_path")  # a tokenizer saves these, which change no answer
LONGEST_SHOWN, MOST_SHOWN = 60, 4  # characters of a value, and values, in the sentence that says what differs


def evaluate(given: Read) -> Callable[[], None]:
    args, data = given.own
    if args.model is None:
        raise ValueError("vision-rl eval needs --model: the output_dir of `vision-rl mle` or `vision-rl tune`.")
    require_folders([args.model])
    require_positive(args, "shard_size", "batch_size")
    if args.workers < 0:
        raise ValueError(f"workers must not be negative; it is {args.workers}.")
    processor = building.with_options(load_processor(args.model, given.task, args.model_revision), given.options)
    rows = require(
        rows_to_look_at(given, args.split), f"of the split {split_to_look_at(data, args.split)}", data, given.task
    )
    if "image_id" in rows.column_names and hasattr(given.task, "check_image_ids"):
        _check_image_ids(given.task, rows["image_id"])
    folder = Path(args.output_dir or building.folder_of(args.model) / "eval")
    folder.mkdir(parents=True, exist_ok=True)
    shards = Shards(folder / "shards", _identity(given, processor, rows), len(rows), args.shard_size)
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
    metric = as_metric(given.task.make_metric(trainer.processor), trainer.processor)
    return lambda: _evaluate(trainer, given, rows, folder, shards, metric)


def _check_image_ids(task: Any, image_ids: Sequence) -> None:
    try:
        task.check_image_ids(image_ids)
    except ValueError as error:
        raise ValueError(
            f"{error} The results name each image by this column: correct it, or rename it, and rows are numbered."
        ) from error


def _evaluate(
    trainer: VisionMLETrainer, given: Read, rows: Any, folder: Path, shards: "Shards", metric: Callable | None
) -> None:
    """Answer shard after shard, all ranks each; what an earlier run has finished is not answered again."""
    args, data = given.own
    for start, path in shards.missing():
        part = rows.select(range(start, min(start + args.shard_size, len(rows))))
        answers = trainer.predict(part)
        if trainer.is_world_process_zero():
            save_plain({"predictions": answers.predictions, "references": answers.label_ids}, path)
            print(f"{min(start + args.shard_size, len(rows))} of {len(rows)} images", flush=True)
        trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    scores = {} if metric is None else scalars_of(shards.metrics(metric))
    row = {"model": str(args.model), "split": split_to_look_at(data, args.split), "images": len(rows), **scores}
    (folder / "metrics.json").write_text(json.dumps(row, indent=1) + "\n")
    if scores:
        print(table(scores))
    given.task.save_results(Predictions(shards), _described(rows, trainer.processor), trainer.processor, folder)
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
        identity: what the answers depend on, by name; those of another evaluation are refused.
        num_rows: images of the data set.
        size: images of a shard.

    Raises:
        ValueError: where the folder has the answers of another evaluation, with what differs.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], num_rows: int, size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{start:08d}.pt" for start in range(0, num_rows, size)]
        self.size = size
        note = folder / "of.json"
        now = json.loads(json.dumps(identity, default=str))
        if any(folder.glob("*.pt")):
            before = json.loads(note.read_text()) if note.is_file() else None
            if before != now:
                differs = "nothing says of which" if before is None else differences(before, now)
                raise ValueError(
                    f"{folder} has the answers of another evaluation: {differs}. Delete that folder to evaluate anew, or "
                    "give another output_dir."
                )
        aside = note.with_suffix(f".{os.getpid()}")  # each rank writes the same
        aside.write_text(json.dumps(now))
        aside.replace(note)

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


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two evaluations, in words; values that are long are only named."""
    told = []
    for name in {**now, **before}:
        values = [json.dumps(facts.get(name)) for facts in (before, now)]
        if values[0] != values[1]:
            short = max(map(len, values)) <= LONGEST_SHOWN
            told.append(f"{name} was {values[0]} and is {values[1]} now" if short else f"{name} is not the same")
    return "; ".join(told[:MOST_SHOWN]) + (f"; and {len(told) - MOST_SHOWN} more" if len(told) > MOST_SHOWN else "")


def _identity(given: Read, processor: Any, rows: Any) -> dict[str, Any]:
    """What answers and their shards depend on, by name: the model and how it answers, the task's file, and the rows."""
    args = given.own[0]
    folder = Path(args.model)
    on_hub = not folder.is_dir()
    task_file = Path(given.named) if given.named is not None and given.named.endswith(".py") else None
    return {
        "model": args.model if on_hub else str(folder.resolve()),
        "the model's commit": (
            HfApi().resolve_revision(args.model, revision=args.model_revision).resolved if on_hub else None
        ),
        "the model's files": [] if on_hub else _files_of_model(folder),
        **_processor_facts(processor),
        "bf16": args.bf16,
        "the task's file": None if task_file is None else _digest(task_file.read_bytes()),
        "the number of images": len(rows),
        "the data": _digest(rows._fingerprint.encode()),
        "shard_size": args.shard_size,
    }


def _files_of_model(folder: Path) -> list[Any]:
    """Name, size and time of each file that a model is loaded from, those of stage I and of adapters too."""
    found = {path for name in MODEL_FILES for pattern in (name, f"*/{name}") for path in folder.glob(pattern)}
    paths = sorted(path for path in found if not path.parent.relative_to(folder).name.startswith("checkpoint-"))
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _processor_facts(processor: Any) -> dict[str, Any]:
    """What a processor saves: its settings, those of its parts, and digests of other files, such as a vocabulary."""
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vision_rl") as folder:
        processor.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            if not path.name.endswith("_config.json"):
                facts[f"the processor's {path.name}"] = _digest(path.read_bytes())
                continue
            settings = json.loads(path.read_text())
            for name in HOW_IT_WAS_LOADED:
                settings.pop(name, None)
            facts |= {f"{name} of the processor": value for name, value in settings.items()}
    return facts


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
