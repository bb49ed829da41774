"""Captioning for the command line and the pipeline: its data, its options, its reward (`vision_rl.task`)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import AutoTokenizer

from vision_rl.data.captions import load_coco_captions, load_karpathy_captions
from vision_rl.data.digit_scenes import digit_scenes
from vision_rl.data.fields import distinct_ids
from vision_rl.tasks.captioning.coco_captions import coco_captions
from vision_rl.tasks.captioning.ngrams import DocumentFrequency
from vision_rl.tasks.captioning.processing import CaptioningProcessor
from vision_rl.tasks.captioning.rewards import CiderReward


Processor = CaptioningProcessor
PAPER_TOKENIZER = "google-bert/bert-base-uncased"
KARPATHY = {"train": None, "validation": "val", "test": "test"}  # None: with restval where there is one


@dataclass
class Options:
    """Where the captions are, and what they are written with."""

    images_dir: str | None = field(
        default=None, metadata={"help": "Folder of the training images; with karpathy_file, of all images."}
    )
    annotation_file: str | None = field(default=None, metadata={"help": "COCO's JSON of the training captions."})
    eval_images_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation images."})
    eval_annotation_file: str | None = field(
        default=None, metadata={"help": "COCO's JSON of the evaluation captions."}
    )
    karpathy_file: str | None = field(
        default=None,
        metadata={
            "help": "In place of COCO's JSON: Karpathy's split, dataset_coco.json or dataset_flickr8k.json, as in the paper."
        },
    )
    scenes: int | None = field(
        default=None,
        metadata={"help": "In place of a folder: number of training scenes of handwritten digits, 64 pixels."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of the tokenizer. None: google-bert/bert-base-uncased, the paper's."},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of tokens that the tokenizer must have; a dry run without it takes the number from here."
        },
    )
    max_caption_length: int | None = field(
        default=None, metadata={"help": "Largest length of a label in tokens. None: 128, as in the paper."}
    )
    follow_symlinks: bool = field(
        default=False, metadata={"help": "Read images that are symbolic links to files outside of their folder."}
    )
    on_bad_annotation: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What to do with annotations and images that cannot be used. raise: end with an error. "
            "skip: leave them out and count them."
        },
    )


def load_data(options: Options, split: str) -> Dataset | None:
    how: dict[str, Any] = {"on_bad_row": options.on_bad_annotation, "follow_symlinks": options.follow_symlinks}
    if options.karpathy_file is not None:
        if options.images_dir is None:
            raise ValueError(f"{options.karpathy_file} needs the folder of its images: images_dir.")
        return load_karpathy_captions(options.images_dir, options.karpathy_file, KARPATHY[split], **how)
    prefix = "" if split == "train" else "eval_"
    images, captions = (getattr(options, f"{prefix}{name}") for name in ("images_dir", "annotation_file"))
    if captions is not None:
        if images is None:
            raise ValueError(f"{captions} needs the folder of its images: {prefix}images_dir.")
        return load_coco_captions(images, captions, **how)
    if images is not None:
        raise ValueError(f"{images} needs the JSON of its captions: {prefix}annotation_file, or karpathy_file.")
    if options.scenes is None or options.annotation_file is not None:
        return None
    return digit_scenes(split, options.scenes if split == "train" else 300, annotations=["captions"])  # type: ignore[arg-type]


def make_processor(options: Options, image_processor: Any, rows: Dataset) -> CaptioningProcessor:
    tokenizer: Any = options.tokenizer or PAPER_TOKENIZER  # its name, or that of the model that goes on
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    # BERT's have neither a start nor an end of that name.
    if tokenizer.bos_token is None and tokenizer.cls_token is not None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if options.vocab_size not in (None, len(tokenizer)):
        raise ValueError(f"The tokenizer has {len(tokenizer)} tokens, but vocab_size is {options.vocab_size}.")
    length = {} if options.max_caption_length is None else {"max_caption_length": options.max_caption_length}
    return CaptioningProcessor(image_processor, tokenizer, **length)


def _cider(processor: CaptioningProcessor, rows: Dataset) -> CiderReward:
    frequency = DocumentFrequency.from_references(list(rows["captions"]), append_eos=True)
    return CiderReward(frequency, append_eos=True, eos_token_id=processor.tokenizer.eos_token_id)


REWARDS = {"cider": _cider}


def make_metric(processor: CaptioningProcessor) -> Callable[..., dict]:
    return coco_captions


def check_image_ids(image_ids: Sequence) -> None:
    """Raise `ValueError` for ids that `save_results` could not write."""
    distinct_ids("image_id", image_ids)


def save_results(predictions: Sequence, rows: list[dict], processor: CaptioningProcessor, folder: Path) -> None:
    """Write `captions.json`, which COCO's caption evaluation reads."""
    pairs = zip(predictions, rows, strict=True)
    results = [{"image_id": row["image_id"], "caption": caption} for caption, row in pairs]
    (folder / "captions.json").write_text(json.dumps(results, ensure_ascii=False, indent=1))
