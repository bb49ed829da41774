"""The data protocol: what a processor must offer so that the trainers can use it.

A row of the data set has an image and the task's target columns. The processor knows both sides: it makes
`pixel_values` and `labels` from a row, objects that people care about from sampled ids, and the references that
rewards and metrics compare them with. Only the collator calls it.
"""

import copy
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin


ORIGINAL_SIZE = "original_size"  # in a picture's `info`: what `vision_rl.data.preprocessed` has resized remembers it
CROP_RATIOS = (0.75, 1.33)  # width to height of a random crop (TensorFlow's `sample_distorted_bounding_box`)


class _NoSpecialTokens:
    """Stands where `Trainer` looks for a tokenizer's special ids: a processor without a tokenizer defines none."""

    pad_token_id = bos_token_id = eos_token_id = None


class VisionProcessor(ProcessorMixin):
    """Base of the processors that the trainers use; a new task subclasses it and overrides three methods.

    A subclass names the keywords under which `__call__` takes its targets in `target_columns`; a data set's columns
    have the same names unless the config's `target_columns` maps them.
    """

    target_columns: tuple[str, ...] = ()
    completion_length: int | None = None  # tokens of every completion, where all have the same number
    watched_ids: tuple[int, ...] = ()  # whose log-probabilities `decode_completions` wants at every position
    suppress_tokens: tuple[
        int, ...
    ] = ()  # which a new model is not to write, such as an id that only starts the decoder
    tokenizer: Any = _NoSpecialTokens

    def __init_subclass__(cls, **kwargs):
        """Once its module is imported, a processor saved beside a model is found by `AutoProcessor`."""
        super().__init_subclass__(**kwargs)
        AutoProcessor.register(cls, cls, exist_ok=True)

    @property
    def makes_references(self) -> bool:
        """Whether `get_references` has something to say. Default: if there are target columns to make them of."""
        return bool(self.target_columns)

    @property
    def vocab_size(self) -> int | None:
        """The number of ids that `labels` may hold, checked against the decoder's; `None` is not checked."""
        return None

    def tokens_from(self, old: "VisionProcessor") -> list[int] | None:
        """For each of this processor's ids, the one of `old` that means the same, or -1; a model is adapted by it.

        Default: the ids are the same; `None` where nothing is known of them.
        """
        if self.vocab_size != old.vocab_size:
            raise ValueError(
                f"{type(self).__name__} has {self.vocab_size} ids, the model {old.vocab_size}, and nothing says which mean the "
                "same: define tokens_from(old)."
            )
        return None if self.vocab_size is None else list(range(self.vocab_size))

    def __call__(self, images: Sequence, seeds: Sequence[int] | None = None, **targets) -> BatchFeature:
        """Rows to model inputs.

        Args:
            images: `B` RGB images.
            seeds: one integer a row, a function of (seed, epoch, row): the source of every random choice that is made
                anew each epoch (which caption, which order of boxes). `None`, as in evaluation: choose the same always.
            targets: the columns of `target_columns`, a list of `B` values each; without them no `labels` are made.

        Returns:
            `pixel_values (B, C, H, W)` and, with targets, `labels (B, T)` where -100 is not learned; also, if tokens are
            not to count alike in the MLE loss, `label_weights (B, T)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(images, seeds=None, **targets).")

    def batch_decode(self, sequences: Sequence[Sequence[int]], **kwargs) -> list:
        """Ids, one list a completion (after its end token is cut or not), to decoded objects: text, boxes, maps."""
        raise NotImplementedError(f"{type(self).__name__} must define batch_decode(sequences).")

    def decode_completions(
        self,
        sequences: list[list[int]],
        *,
        per_token_logps: torch.Tensor,
        watched_logps: torch.Tensor | None,
        image_sizes: list[tuple[int, int]],
    ) -> list:
        """What the trainers call to decode; override it where ids alone do not tell. Default: `batch_decode`.

        Args:
            sequences: N lists of ids, up to and including the end token.
            per_token_logps: `(N, T)`, the log-probabilities of these ids.
            watched_logps: `(N, T, C)`, those of the C `watched_ids`; `None` without any.
            image_sizes: N pairs (width, height), of the images as they are in the data set.
        """
        return self.batch_decode(sequences)

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Called once for each data set before training; raise a `ValueError` for what cannot be learned from.

        `columns` maps `image` and the target keywords to the data set's columns. Default: nothing is checked.
        """

    def get_references(self, rows: list[dict]) -> list:
        """What each row's completion is compared with, by rewards and metrics alike. Default: the target column.

        A row has the data set's columns, its targets under the names of `target_columns`, and the RGB image as `image`.
        """
        if len(self.target_columns) != 1:
            raise NotImplementedError(
                f"{type(self).__name__} has targets {self.target_columns}: define get_references(rows) for them."
            )
        return [row[self.target_columns[0]] for row in rows]


class DenseProcessor(VisionProcessor):
    """Base of the processors whose answers are maps or pictures, which the model writes as codes.

    A frozen network, UViM's stage I, turns the codes into the answer and back. So this processor has two more methods,
    which speak with that network; `__call__` takes the codes of a column `codes`, if the data set has one, and makes
    labels of them with `labels_of`.
    """

    suppress_tokens = (0,)  # it starts the decoder, and is no code
    num_codes: int  # of stage I's codebook; set by the subclass, as is the next
    code_len: int  # codes of an image
    regression: bool = False  # stage I learns numbers in [-1, 1], not classes

    @property
    def outputs(self) -> dict[str, int] | None:
        """The outputs of stage I that `dense` makes targets for, with their classes or channels; `None`: not checked."""
        return None

    @property
    def vocab_size(self) -> int:
        """The codes, and token 0, which starts the decoder."""
        return self.num_codes + 1

    @property
    def completion_length(self) -> int:  # type: ignore[override]
        return self.code_len

    def labels_of(self, codes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Codes of `B` images, from 0 on, as labels `(B, code_len)`: a token is a code plus 1.

        Raises:
            ValueError: for codes that are not `code_len` integers an image, or not of the codebook.
        """
        rows = [np.asarray(row) for row in codes]
        for row in rows:
            if row.shape != (self.code_len,) or not np.issubdtype(row.dtype, np.integer):
                raise ValueError(
                    f"codes must be {self.code_len} integers (code_len), they are {row.dtype} {row.shape}."
                )
            if row.min() < 0 or row.max() >= self.num_codes:
                raise ValueError(
                    f"codes must be from 0 to {self.num_codes - 1} (num_codes - 1), they are from {row.min()} to "
                    f"{row.max()}. Are these token ids? A token is a code plus 1."
                )
        return torch.from_numpy(np.stack(rows).astype(np.int64)) + 1

    def dense(self, images: Sequence, seeds: Sequence[int] | None = None, **targets) -> BatchFeature:
        """Rows to what stage I learns.

        Args:
            images: `B` RGB images.
            seeds: as in `__call__`; the source of flips and crops, which images and targets share.
            targets: the columns of `target_columns`.

        Returns:
            `pixel_values (B, C, H, W)` and `targets`, a dict with an entry for each output of stage I: integers
            `(B, H, W)`, or floats `(B, H, W, C)` in [-1, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} must define dense(images, seeds=None, **targets).")

    def from_dense(self, outputs: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> list:
        """What stage I's `decode` gives for N images, `(N, H, W, C)` by name, as N objects that people care about."""
        raise NotImplementedError(f"{type(self).__name__} must define from_dense(outputs, pixel_values).")


class TextProcessor(VisionProcessor):
    """Images that are read as text: any transformers image processor with any tokenizer.

    `labels` are the tokenizer's own ids with the end token last and -100 behind it. A first token that the model is
    given anyway (`decoder_start_token_id`, as BERT's `[CLS]`) is dropped. The trainers wrap processors such as
    `TrOCRProcessor` and `DonutProcessor` in this class themselves.

    Args:
        image_processor: a transformers image processor.
        tokenizer: a tokenizer with a pad and an end token.
        decoder_start_token_id: the model's; the trainers fill it in.
    """

    target_columns = ("text",)

    def __init__(self, image_processor, tokenizer, decoder_start_token_id: int | None = None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.decoder_start_token_id = decoder_start_token_id
        for name in ("pad", "eos"):
            if getattr(tokenizer, f"{name}_token_id") is None:
                suggestion = {"pad": "tokenizer.eos_token", "eos": "tokenizer.sep_token"}[name]
                raise ValueError(
                    f"The tokenizer has no {name}_token: without it the model cannot learn where a text ends. "
                    f"Set it, for example tokenizer.{name}_token = {suggestion}."
                )

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    def __call__(self, images, seeds=None, text: Sequence[str] | None = None, **kwargs) -> BatchFeature:
        batch = {"pixel_values": self.image_processor(list(images), return_tensors="pt")["pixel_values"]}
        if text is not None:
            batch["labels"] = self._labels(list(text))
        return BatchFeature(batch)

    def _labels(self, text: list[str]) -> torch.Tensor:
        for value in text:
            if not isinstance(value, str):
                raise ValueError(f"text must be a string, it is a {type(value).__name__}: {value!r}.")
        end = self.tokenizer.eos_token_id
        sequences = []
        for ids in self.tokenizer(text)["input_ids"]:
            if ids and ids[0] == self.decoder_start_token_id:
                ids = ids[1:]
            if not ids or ids[-1] != end:
                ids = [*ids, end]
            sequences.append(torch.tensor(ids))
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-100)  # (B, T)

    def tokens_from(self, old) -> list[int]:
        """By the tokens' texts."""
        known = old.tokenizer.get_vocab()
        return [known.get(token, -1) for token in self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))]

    def batch_decode(self, sequences, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def decode(self, ids, **kwargs) -> str:
        """One completion, as `batch_decode` reads it."""
        return self.batch_decode([ids], **kwargs)[0]


def as_vision_processor(processing_class, decoder_start_token_id: int | None) -> VisionProcessor:
    """The processor in the form that the trainers use: ours as it is, an image processor with a tokenizer as text."""
    if isinstance(processing_class, TextProcessor) and processing_class.decoder_start_token_id is None:
        processing_class = copy.copy(processing_class)  # the user's own stays as it was
        processing_class.decoder_start_token_id = decoder_start_token_id
    if isinstance(processing_class, TextProcessor) and decoder_start_token_id is not None:
        start = processing_class.decoder_start_token_id
        if start != decoder_start_token_id:
            raise ValueError(
                f"The processor's decoder_start_token_id is {start}, the model's {decoder_start_token_id}: leave the "
                "processor's out, or give both the same."
            )
    if isinstance(processing_class, VisionProcessor):
        return processing_class
    if isinstance(processing_class, ProcessorMixin) and {"image_processor", "tokenizer"} <= set(
        type(processing_class).get_attributes()
    ):
        return TextProcessor(processing_class.image_processor, processing_class.tokenizer, decoder_start_token_id)
    kind = "tokenizer" if isinstance(processing_class, PreTrainedTokenizerBase) else type(processing_class).__name__
    raise TypeError(
        f"processing_class is a {kind}; a trainer needs both sides of the data: a vision_rl processor, a transformers "
        "processor with image_processor and tokenizer (TrOCRProcessor, DonutProcessor, ...), or "
        "TextProcessor(image_processor, tokenizer)."
    )


def image_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as it is in the data set, also where its pixels have been resized beforehand."""
    return image.info.get(ORIGINAL_SIZE, image.size)


def rgb_image(image, row: int) -> Image.Image:
    """Any picture as 8-bit RGB: grey, 16-bit, CMYK, alpha (over white) and palette ones are converted.

    Takes a PIL image, a path, or a uint8 array `(H, W)` or `(H, W, C)`. Raises `ValueError` with the row, and the file
    where there is one, when it cannot be decoded.
    """
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    try:
        if isinstance(image, str | os.PathLike):
            image = ImageOps.exif_transpose(Image.open(image))  # as `datasets` turns the photos it opens
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise TypeError(f"an array of {image.dtype} has no known range (expected uint8, 0 to 255)")
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        elif not isinstance(image, Image.Image):
            raise TypeError(f"a {type(image).__name__} is no image (expected a PIL image, a path or an array)")
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"The image of row {row}{f' ({path})' if path else ''} cannot be read: {error}") from error


def random_box(size: tuple[int, int], areas: Sequence[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A part of an image for training, as x0, y0, x1, y1: of random area, shape and place.

    All heights that give such an area are equally likely, as in TensorFlow's `sample_distorted_bounding_box`. It is smaller
    than asked where none of that shape fits.
    """
    width, height = size
    ratio = rng.uniform(*CROP_RATIOS)
    lowest, highest = (math.sqrt(area * width * height / ratio) for area in areas)
    highest = min(highest, height, width / ratio)
    new_height = rng.uniform(min(lowest, highest), highest)
    new_width, new_height = min(width, max(1, round(new_height * ratio))), min(height, max(1, round(new_height)))
    x, y = int(rng.integers(width - new_width + 1)), int(rng.integers(height - new_height + 1))
    return x, y, x + new_width, y + new_height
