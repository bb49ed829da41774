"""Captions as tokens: the processor of captioning (paper, section 4.4)."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tokenizers.decoders import WordPiece
from transformers import BatchFeature

from vision_rl.arguments import naming_arguments
from vision_rl.columns import check_values, column_values
from vision_rl.processing import TextProcessor
from vision_rl.tasks.captioning.drawing import draw as draw_caption
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize


class CaptioningProcessor(TextProcessor):
    """Rows with `image` and `captions: list[str]` to tokens, and tokens to a caption.

    MLE learns one of an image's captions, drawn anew each epoch, and the first in evaluation; rewards and metrics compare
    with all of them. `labels` are the tokenizer's ids, then the end token, then -100, which is not learned. The decoder
    starts with the model's `decoder_start_token_id`. What the paper does there is not published; BERT's tokenizers have
    neither start nor end token of that name, so say which they are:

    ```python
    tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")  # the paper's vocabulary
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    ```

    WordPiece tells neither "t-shirt" from "t - shirt" nor "man's" from "man ' s". A completion is decoded to the former of
    both, which is what captions mean nearly always, and what CIDEr's tokenizer makes one word, or 's, of.

    Args:
        image_processor: a transformers image processor.
        tokenizer: a transformers tokenizer with a pad and an end token.
        decoder_start_token_id: the model's; the trainers fill it in.
        max_caption_length: of the labels in tokens, the end token included; longer captions are cut, and then have no end
            token, for they do not end there. Paper: 128.

    Raises:
        ValueError: for a tokenizer without pad or end token; in use, for rows whose captions are no list of strings.
    """

    target_columns = ("captions",)

    def __init__(
        self,
        image_processor,
        tokenizer,
        decoder_start_token_id: int | None = None,
        max_caption_length: int = 128,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, decoder_start_token_id, **kwargs)
        if max_caption_length < 2:
            raise ValueError(
                f"max_caption_length must be at least 2 (a word and the end); it is {max_caption_length}."
            )
        self.max_caption_length = max_caption_length

    @naming_arguments
    def __call__(  # type: ignore[override]
        self,
        images,
        seeds=None,
        captions: Sequence[list[str]] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        if captions is None:
            return super().__call__(images, return_tensors=return_tensors)
        captions = [checked_captions(texts) for texts in captions]
        seeds = [None] * len(captions) if seeds is None else seeds
        chosen = [
            texts[0 if seed is None else np.random.default_rng(seed).integers(len(texts))]
            for texts, seed in zip(captions, seeds, strict=True)
        ]
        return super().__call__(images, text=chosen, return_tensors=return_tensors)

    def _label_ids(self, text: list[str]) -> list[list[int]]:
        return [ids[: self.max_caption_length] for ids in super()._label_ids(text)]

    @naming_arguments
    def batch_decode(
        self, sequences, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        texts = super().batch_decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and isinstance(backend.decoder, WordPiece):
            texts = [rejoined(text) for text in texts]
        return texts

    def draw(self, image, completion, reference=None, width=None) -> Image.Image:
        """The image with its caption below, and what people say of it."""
        return draw_caption(image, completion, reference, width)

    @naming_arguments
    def get_references(self, rows: list[dict]) -> list[list[str]]:
        return [[self._bare(text) for text in checked_captions(row["captions"])] for row in rows]

    def says_the_same(self, completion: str, reference: list[str]) -> bool:
        """Labels are of the first caption; case and spaces do not count, for CIDEr does not see them."""
        made, true = ptb_tokenize([completion, reference[0]])
        return made == true

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Every row has a caption, and captions are strings."""
        if "captions" in columns:
            column = columns["captions"]
            check_values(column_values(dataset, column), column, len(dataset), checked_captions)

    def check_label_lengths(self, dataset, columns: dict[str, str], num_positions: int) -> None:
        """Check the labels of all captions, as any may be learned; of a long one `max_caption_length` tokens are."""
        if "captions" in columns:
            self._check_labels(
                column_values(dataset, columns["captions"]), columns["captions"], len(dataset), num_positions
            )


_JOINTS = [
    (re.compile(r"(?<=\w) ' (?=(?:s|t|d|m|re|ve|ll)\b)"), "'"),  # man ' s, isn ' t
    (re.compile(r"(?<=\bo) ' (?=clock\b)"), "'"),
    (re.compile(r"(?<=\w) ([-/]) (?=\w)"), r"\1"),  # t - shirt, tub / shower
    (re.compile(r"(?<=\b[a-z])\. (?=[b-hj-z]\b)"), "."),  # t. v; but not "row b. a man"
    (re.compile(r"(?<=\d)(\.|,) (?=\d{3}\b)"), r"\1"),  # 1, 000: the decoder has joined the sign to the left
    (re.compile(r"(?<=\d)\. (?=\d)"), "."),
    (re.compile(r"(?<=\d) : (?=\d)"), ":"),
    (re.compile(r"# (?=\d)"), "#"),
]


def rejoined(text: str) -> str:
    """Text without the spaces that WordPiece's decoding puts into words: "a man ' s t - shirt" becomes "a man's t-shirt"."""
    for joint, sign in _JOINTS:
        text = joint.sub(sign, text)
    return text


def checked_captions(captions) -> list[str]:
    """All captions of an image as a list of strings, which they must be."""
    captions = captions.tolist() if isinstance(captions, np.ndarray) else captions
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise ValueError(
            f"captions must be a list with all captions of the image; it is the {type(captions).__name__} "
            f"{captions!r}. Put a single caption into a list: [caption]."
        )
    if len(captions) == 0:
        raise ValueError("There is no caption: leave the image out.")
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"A caption must be a string; there is a {type(caption).__name__}: {caption!r}.")
        if not caption.strip():
            raise ValueError(f"A caption is blank, {caption!r}: leave it out.")
    return list(captions)
