"""Reading text for the command line and the pipeline: its data, its options, its rewards by name (`vision_rl.task`)."""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from vision_rl.data.handwriting import digit_strings
from vision_rl.processing import TextProcessor
from vision_rl.tasks.ocr.rewards import character_accuracy_reward, character_error_rate, exact_match_reward
from vision_rl.tasks.ocr.tokenizer import character_tokenizer


Processor = TextProcessor


@dataclass
class Options:
    """What is read: rows with `image` and `text` are a data set (`dataset_name`), or digits."""

    scenes: int | None = field(
        default=None,
        metadata={"help": "In place of a data set: number of training images with strings of handwritten digits."},
    )
    alphabet: str | None = field(
        default=None,
        metadata={"help": "Characters that the model reads, in place of a tokenizer. None: the 95 of ASCII."},
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub name of a tokenizer."})


def load_data(options: Options, split: str) -> Dataset | None:
    if options.scenes is None:
        return None
    count = options.scenes if split == "train" else 500
    return digit_strings(split, count, min_digits=2, max_digits=4, height=32, width=80, crowding=0.25)  # type: ignore[arg-type]


def make_processor(options: Options, image_processor: Any, rows: Dataset) -> TextProcessor:
    tokenizer: Any = options.tokenizer  # its name, or that of the model that goes on
    if options.alphabet is not None or tokenizer is None:
        tokenizer = character_tokenizer(options.alphabet or string.printable[:95])
    elif isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return TextProcessor(image_processor, tokenizer)


REWARDS = {
    "exact_match": lambda processor, rows: exact_match_reward,
    "character_accuracy": lambda processor, rows: character_accuracy_reward,
}


def make_metric(processor: TextProcessor) -> Callable[..., dict]:
    return character_error_rate


def save_results(predictions: Sequence, rows: list[dict], processor: TextProcessor, folder: Path) -> None:
    """Write `texts.json`, with the text of each image."""
    pairs = zip(predictions, rows, strict=True)
    results = [{"image_id": row["image_id"], "text": text} for text, row in pairs]
    (folder / "texts.json").write_text(json.dumps(results, ensure_ascii=False, indent=1))
