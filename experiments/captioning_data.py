"""The data of the captioning examples: a folder in COCO's form, Karpathy's split of one, or a data set by name."""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset, load_dataset

from vision_rl.data.captions import load_coco_captions, load_karpathy_captions


@dataclass
class DataArguments:
    images_dir: str | None = None  # with annotation_file, COCO's captions JSON; a seventh each is validation and test
    annotation_file: str | None = None
    karpathy_file: str | None = None  # instead of annotation_file: dataset_coco.json or dataset_flickr8k.json
    on_bad_row: Literal["raise", "skip"] = "raise"  # of these files
    dataset_name: str | None = None  # rows with `image` and `captions: list[str]`; splits train, validation and test


def captioning_data(args: DataArguments) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and test rows."""
    if args.karpathy_file is not None and args.images_dir is not None:
        splits = (("train", "restval"), "val", "test")
        train, validation, test = (
            load_karpathy_captions(args.images_dir, args.karpathy_file, split, on_bad_row=args.on_bad_row)
            for split in splits
        )
        return train, validation, test
    if args.dataset_name is not None:
        loaded = load_dataset(args.dataset_name)
        if not {"train", "validation", "test"} <= set(loaded):
            raise ValueError(
                f"{args.dataset_name} has the splits {list(loaded)}; train, validation and test are needed."
            )
        return loaded["train"], loaded["validation"], loaded["test"]
    if args.images_dir is None or args.annotation_file is None:
        raise ValueError(
            "Say what to learn from: --images_dir with --annotation_file or --karpathy_file, or --dataset_name."
        )
    rows = load_coco_captions(args.images_dir, args.annotation_file, on_bad_row=args.on_bad_row).shuffle(seed=0)
    first, second = 5 * len(rows) // 7, 6 * len(rows) // 7
    return rows.select(range(first)), rows.select(range(first, second)), rows.select(range(second, len(rows)))
