"""The model and the data of the captioning experiment: a pretrained ViT, a BERT as decoder, and photos in folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, BertTokenizer, PreTrainedModel, VisionEncoderDecoderModel

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
    args: ModelArguments, options: captioning.Options, captions: Sequence[Sequence[str]]
) -> tuple[VisionEncoderDecoderModel, captioning.CaptioningProcessor]:
    """A model whose encoder is frozen, and its processor. They know the words of `captions`, a list for each photo."""
    tokenizer: Any = AutoTokenizer.from_pretrained(args.decoder)
    size = {"num_hidden_layers": args.num_decoder_layers}
    decoder = make_decoder(len(tokenizer), 0, size, init=args.decoder)
    tokenizer = trim_vocabulary(tokenizer, decoder, [caption for of_photo in captions for caption in of_photo])
    image_processor = models.load_image_processor(args.encoder, args.image_size)
    processor = captioning.make_processor(replace(options, tokenizer=tokenizer), image_processor, None)
    encoder = models.load_encoder(args.encoder, args.image_size, num_hidden_layers=args.num_encoder_layers)
    model = make_model(processor, encoder, decoder)
    model.encoder.requires_grad_(False)
    return model, processor


@torch.no_grad()
def trim_vocabulary(tokenizer: BertTokenizer, decoder: PreTrainedModel, texts: Sequence[str]) -> BertTokenizer:
    """A tokenizer that has only the tokens of `texts`, and splits them as before. The decoder loses the others as well.

    The head for BERT's 30,522 tokens has twice as many weights as three layers of 384; four thousand captions use a tenth of it.

    Raises:
        TypeError: for a tokenizer other than BERT's, whose tokens are made by merging others.
    """
    if not isinstance(tokenizer, BertTokenizer):
        raise TypeError(f"The decoder must be a BERT: its tokenizer is a {type(tokenizer).__name__}.")
    used = {token for ids in tokenizer(list(texts))["input_ids"] for token in ids}
    kept = sorted(used.union(tokenizer.all_special_ids))
    embeddings, bias = decoder.get_input_embeddings().weight[kept], decoder.get_output_embeddings().bias[kept]
    decoder.resize_token_embeddings(len(kept), mean_resizing=False)  # of the output too: they are tied
    decoder.get_input_embeddings().weight.copy_(embeddings)
    decoder.get_output_embeddings().bias.copy_(bias)
    vocabulary = {token: place for place, token in enumerate(tokenizer.convert_ids_to_tokens(kept))}
    how = {name: getattr(tokenizer, name) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    return BertTokenizer(vocab=vocabulary, **how)


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
