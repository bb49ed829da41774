"""The model and the data of the captioning experiment: a pretrained ViT, a BERT as decoder, and photos in folds."""

from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import VisionEncoderDecoderModel

from vision_rl import models
from vision_rl.models.description import make_decoder, make_model
from vision_rl.tasks import captioning


SPLITS = ("train", "validation", "test")


@dataclass
class ModelArguments:
    encoder: str = "facebook/dinov2-small"
    decoder: str = "google-bert/bert-base-uncased"
    image_size: int = 224
    num_encoder_layers: int | None = None  # the first so many; None: all
    num_decoder_layers: int = 6  # as in the paper


def captioner(
    args: ModelArguments, options: captioning.Options
) -> tuple[VisionEncoderDecoderModel, captioning.CaptioningProcessor]:
    """A model whose encoder is frozen, and its processor."""
    image_processor = models.load_image_processor(args.encoder, args.image_size)
    processor = captioning.make_processor(replace(options, tokenizer=args.decoder), image_processor, None)
    encoder = models.load_encoder(args.encoder, args.image_size, num_hidden_layers=args.num_encoder_layers)
    size = {"num_hidden_layers": args.num_decoder_layers}
    model = make_model(processor, encoder, make_decoder(processor.vocab_size, 0, size, init=args.decoder))
    model.encoder.requires_grad_(False)
    return model, processor


def folds(options: captioning.Options, count: int) -> tuple[Dataset, list[dict[str, list[int]]]]:
    """All rows, and for each fold the numbers of those for training, validation and test.

    A folder in COCO's form is tested by cross-validation, so that each image is tested once: of `count` equal parts one is
    for test, and the first half of the next for validation. Karpathy's splits are a single fold.

    Raises:
        ValueError: if no folder is given, or there are fewer images than two for each part.
    """
    if options.karpathy_file is not None:
        splits = [captioning.load_data(options, name) for name in SPLITS]
        bounds = np.cumsum([0, *map(len, splits)])
        numbers = [list(range(*bounds[place : place + 2])) for place in range(len(splits))]
        return concatenate_datasets(splits), [dict(zip(SPLITS, numbers, strict=True))]
    rows = captioning.load_data(options, "train")
    if rows is None:
        raise ValueError("Say what to learn from: --images_dir with --annotation_file or --karpathy_file.")
    if count < 3 or len(rows) < 2 * count:
        raise ValueError(f"{len(rows)} images make no {count} folds: there must be at least 3, of two images each.")
    parts = [part.tolist() for part in np.array_split(np.random.default_rng(0).permutation(len(rows)), count)]
    found = []
    for fold, test in enumerate(parts):
        following = parts[(fold + 1) % count]
        validation = following[: len(following) // 2]
        held_out = {*test, *validation}
        train = [row for part in parts for row in part if row not in held_out]
        found.append({"train": train, "validation": validation, "test": test})
    return rows, found
