"""The data protocol: what a processor must offer so that the trainers can use it.

A row of the data set has an image and the task's target columns. The processor knows both sides: it makes
`pixel_values` and `labels` from a row, objects that people care about from sampled ids, and the references that
rewards and metrics compare them with. Only the collator calls it.
"""

import copy
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, BatchFeature, LogitsProcessorList, PreTrainedTokenizerBase, ProcessorMixin

from vision_rl.arguments import check_rows, id_rows, naming_arguments
from vision_rl.columns import arrow_chunks, check_values, column_values, is_list, list_lengths
from vision_rl.drawing import LABEL, RIGHT, UNJUDGED, draw_text_below
from vision_rl.pictures import as_images, shown_size
from vision_rl.pictures import random_box as random_box  # where others look for them
from vision_rl.pictures import rgb_image as rgb_image


logger = logging.getLogger(__name__)

NUM_TOKENIZED = 1000  # texts at once
ORIGINAL_SIZE = "original_size"  # in a picture's `info`: what `vision_rl.data.preprocessed` has resized remembers it


class _NoSpecialTokens:
    """Stands where `Trainer` looks for a tokenizer's special ids: a processor without a tokenizer defines none."""

    pad_token_id = bos_token_id = eos_token_id = None


def _with_pillow(image_processor: Any) -> Any:
    """The same image processor in the form that computes with Pillow; itself where there is no other."""
    form = getattr(transformers, f"{type(image_processor).__name__}Pil", None)
    return image_processor if form is None else form(**image_processor.to_dict())


class VisionProcessor(ProcessorMixin):
    """Base of the processors that the trainers use; a new task subclasses it and overrides three methods.

    A subclass names the keywords under which `__call__` takes its targets in `target_columns`; a data set's columns
    have the same names unless the config's `target_columns` maps them.

    Its `image_processor` is transformers' form that computes with Pillow, also where torchvision is installed and transformers
    would choose its other form: that one's pixels differ by a grey level here and there, and so might a model's answers.
    """

    target_columns: tuple[str, ...] = ()
    pipeline_tag = "image-to-text"  # the Hub's name of the task, for model cards
    input_columns: tuple[str, ...] = ()  # which `__call__` takes with every image, such as a prompt
    id2label: Any = None  # names of the classes by their ids, for the model's config
    completion_length: int | None = None  # tokens of every completion, where all have the same number
    watched_ids: tuple[int, ...] = ()  # whose log-probabilities `decode_completions` wants at every position
    logits_processor: LogitsProcessorList | None = (
        None  # by which greedy decoding chooses; `generate` is given it, too
    )
    suppress_tokens: tuple[
        int, ...
    ] = ()  # which a new model is not to write, such as an id that only starts the decoder
    tokenizer: Any = _NoSpecialTokens

    def __init_subclass__(cls, **kwargs):
        """Once its module is imported, a processor saved beside a model is found by `AutoProcessor`."""
        super().__init_subclass__(**kwargs)
        AutoProcessor.register(cls, cls, exist_ok=True)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if "image_processor" in vars(self):
            self.image_processor = _with_pillow(self.image_processor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, trust_remote_code: bool = False, **kwargs):
        """Load as transformers does, but refuse code that comes with the folder instead of asking on stdin."""
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, trust_remote_code=trust_remote_code, **kwargs
        )

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
                f"{type(self).__name__} has {self.vocab_size} ids and the model has {old.vocab_size}, and nothing says which of "
                "them mean the same: define tokens_from(old) in the processor."
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

    def batch_decode(self, sequences) -> list:
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

    def draw(
        self, image: Image.Image, completion: Any, reference: Any = None, width: int | None = None
    ) -> Image.Image:
        """A completion as a picture, for `log_completions`; override it where a picture says more than text.

        Default: the image with the completion, and the reference in grey, written below it.

        Args:
            image: RGB, of the size that the data set's image has.
            completion: one object of `decode_completions`.
            reference: one of `get_references`, if there is one.
            width: of the drawn image in pixels; without one a small image is enlarged.
        """
        right = reference is not None and completion_text(completion) == completion_text(reference)
        lines = [("", completion_text(completion) or "(empty)", RIGHT if right else UNJUDGED)]
        if reference is not None:
            lines.append(("true", completion_text(reference), LABEL))
        return draw_text_below(image, lines, width)

    def take_options(self, options) -> None:
        """Called with the options of the task, of a copy of a saved processor too: take what their files say of classes.

        Raise a `ValueError` for what contradicts the processor. Default: nothing is taken.
        """

    def take_saved(self, saved, options) -> None:
        """Called where MLE goes on from a model, with its processor: take what neither the data nor the options say.

        Fields of the task's options are taken already. Default: nothing else is.
        """

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Called once for each data set before training; raise a `ValueError` for what cannot be learned from.

        `columns` maps `image` and the target keywords to the data set's columns. Default: nothing is checked.
        """

    def check_opened(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], columns: dict[str, str], num_rows: int
    ) -> None:
        """Raise an `UnusableRows` for `num_rows` numbered rows whose opened pictures contradict their other targets.

        `vision-rl prepare`, which opens all pictures, asks it of each row. Default: nothing is checked.
        """

    def check_label_lengths(self, dataset, columns: dict[str, str], num_positions: int) -> None:
        """Called before MLE; raise a `ValueError` for rows whose labels have more tokens than the decoder has positions."""

    def says_the_same(self, completion, reference) -> bool:
        """Whether what a row's own labels are decoded to is its reference; asked of the first rows, and warned of if not.

        Override it where a completion is never exactly a reference. Default: equal, or of different kinds.
        """
        return type(completion) is not type(reference) or repr(completion) == repr(reference)

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

    @naming_arguments
    def labels_of(self, codes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Codes of `B` images, from 0 on, as labels `(B, code_len)`: a token is a code plus 1.

        Raises:
            ValueError: for codes that are not `code_len` integers an image, or not of the codebook.
        """
        rows = [np.asarray(row) for row in codes]
        for row in rows:
            if row.shape != (self.code_len,) or not np.issubdtype(row.dtype, np.integer):
                raise ValueError(
                    f"codes must be {self.code_len} integers (code_len); they have the dtype {row.dtype} and the shape "
                    f"{row.shape}."
                )
            if row.min() < 0 or row.max() >= self.num_codes:
                raise ValueError(
                    f"codes must be from 0 to {self.num_codes - 1} (num_codes - 1), but they go from {row.min()} to "
                    f"{row.max()}. Are these token ids? A token id is a code plus 1."
                )
        return torch.from_numpy(np.stack(rows).astype(np.int64)) + 1

    def check_codes(self, dataset, column: str) -> None:
        """Every row of a column of codes can be made labels of."""

        def odd_rows() -> Iterator[tuple[int, Any]]:
            chunks = arrow_chunks(dataset, column)
            if chunks is None:
                yield from column_values(dataset, column)
                return
            for first, chunk in chunks:
                odd = np.ones(len(chunk), bool)
                if is_list(chunk.type) and pa.types.is_integer(chunk.type.value_type):
                    odd = list_lengths(chunk) != self.code_len
                    codes = chunk.filter(pa.array(~odd)).flatten().fill_null(-1).to_numpy().reshape(-1, self.code_len)
                    odd[~odd] = (codes.min(1) < 0) | (codes.max(1) >= self.num_codes)
                yield from ((first + i, chunk[i].as_py()) for i in np.flatnonzero(odd).tolist())

        check_values(odd_rows(), column, len(dataset), lambda codes: self.labels_of([codes]))

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

    `labels` are the tokenizer's own ids with one end token last and -100 behind it. A start that the decoder is given
    anyway (`decoder_start_token_id`, as BERT's `[CLS]` or a task token of Donut's) is not learned, whether the tokenizer or
    the text puts it in front. Decoding drops padding, start and end and nothing else: tags such as Donut's `<s_menu>` are
    special tokens too, and stay. The trainers wrap processors such as `TrOCRProcessor` and `DonutProcessor` in this class
    themselves.

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

    # --- text to ids ------------------------------------------------------------------------------------------------

    @naming_arguments
    def __call__(  # type: ignore[override]
        self, images, seeds=None, text: str | Sequence[str] | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        check_return_tensors(return_tensors)
        if isinstance(seeds, str) or any(isinstance(seed, str) for seed in seeds or ()):
            raise ValueError("seeds must be whole numbers, but there are texts: pass these by name, text=[...].")
        pictures = as_images(images)
        batch = {"pixel_values": self.image_processor(pictures, return_tensors="pt")["pixel_values"]}
        text = [text] if isinstance(text, str) else text
        if text is not None:
            check_rows(images=pictures, text=text)
            batch["labels"] = self._labels(list(text))
        return BatchFeature(batch)

    def _labels(self, text: list[str]) -> torch.Tensor:
        sequences = [torch.tensor(ids) for ids in self._label_ids([checked_text(value) for value in text])]
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-100)  # (B, T)

    def tokens_from(self, old) -> list[int]:
        """Match the ids by their tokens' texts."""
        known = old.tokenizer.get_vocab()
        return [known.get(token, -1) for token in self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))]

    def _label_ids(self, text: list[str]) -> list[list[int]]:
        """What is learned of each text: its ids without the start that the decoder is given, and with one end token."""
        tokenizer, start, starts = self.tokenizer, self.decoder_start_token_id, self._start_ids
        end = tokenizer.eos_token_id
        starts_by_itself = start not in (None, tokenizer.pad_token_id, end)
        sequences = []
        for ids in tokenizer(text, return_attention_mask=False)["input_ids"]:
            while ids and ids[-1] == end:
                ids = ids[:-1]
            in_front = list(itertools.takewhile(starts.__contains__, ids))
            # Of the tokenizer's one stays behind a start that is no start by itself: TrOCR learns its <s> behind </s>.
            kept = 0 if starts_by_itself or start in in_front else 1
            sequences.append([*in_front[len(in_front) - kept :], *ids[len(in_front) :], end])
        return sequences

    def _ids_of(self, texts: list[tuple[int, str]]) -> Iterator[tuple[int, str, list[int] | Exception]]:
        """Rows and texts with what is learned of them, or with the error of a text that has no ids."""
        try:
            sequences: list = self._label_ids([text for _, text in texts])
        except Exception as error:  # tokenizers raise nothing narrower
            if len(texts) > 1:
                for one in texts:
                    yield from self._ids_of([one])
                return
            sequences = [error]
        for (row, text), ids in zip(texts, sequences, strict=True):
            yield row, text, ids

    @property
    def _start_ids(self) -> set[int]:
        ids = (self.decoder_start_token_id, self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        return {i for i in ids if i is not None}

    # --- ids to text ------------------------------------------------------------------------------------------------

    @naming_arguments
    def batch_decode(
        self, sequences, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Texts of ids `(B, T)`: of completions, of what `generate` returns, or of labels, whose -100 is no token.

        Args:
            sequences: lists, or a tensor or array.
            skip_special_tokens: leave out padding, start and end, and what else the tokenizer puts around every text.
            clean_up_tokenization_spaces: as in `tokenizer.decode`.
        """
        left_out = self._surrounding_ids if skip_special_tokens else set()
        rows = id_rows("sequences", sequences)
        if not rows:
            return []  # of which the tokenizer would make one text
        sequences = [[i for i in ids.tolist() if i >= 0 and i not in left_out] for ids in rows]
        return self.tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=clean_up_tokenization_spaces)

    @naming_arguments
    def decode(self, ids, **kwargs) -> str:
        """One completion, as `batch_decode` reads it."""
        return self.batch_decode([ids], **kwargs)[0]

    @property
    def _surrounding_ids(self) -> set[int]:
        around = set(self.tokenizer("")["input_ids"]) & set(self.tokenizer.all_special_ids)
        return {*around, *self._start_ids, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}

    @naming_arguments
    def get_references(self, rows: list[dict]) -> list:
        """The texts without a start and an end that are written out in them, as completions have none."""
        references = super().get_references(rows)
        return [self._bare(text) if isinstance(text, str) else text for text in references]

    def _bare(self, text: str) -> str:
        if getattr(self.tokenizer, "split_special_tokens", False):
            return text  # in which "</s>" is four letters
        starts = map(re.escape, self.tokenizer.convert_ids_to_tokens(sorted(self._start_ids)))
        end = re.escape(self.tokenizer.eos_token)
        return re.sub(rf"\A(?:\s*(?:{'|'.join(starts) or end}))+\s*|\s*(?:{end}\s*)+\Z", "", text)

    # --- a look at the rows -----------------------------------------------------------------------------------------

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Every row has a text."""
        if "text" in columns:
            check_values(column_values(dataset, columns["text"]), columns["text"], len(dataset), checked_text)

    def check_label_lengths(self, dataset, columns: dict[str, str], num_positions: int) -> None:
        """The tokenizer can write every text, and the decoder has a place for each of its tokens."""
        if "text" in columns:
            texts = ((row, [text]) for row, text in column_values(dataset, columns["text"]))
            self._check_labels(texts, columns["text"], len(dataset), num_positions)

    def _check_labels(self, texts_of_rows, column: str, num_rows: int, num_positions: int) -> None:
        """Check the labels of each text of each row, and warn of texts that the tokenizer knows in part."""
        tokenizer = self.tokenizer
        lengths: dict[int, int] = {}
        unwritten: dict[int, Exception] = {}
        unknown: dict[int, str] = {}
        unk = tokenizer.unk_token_id
        unk = None if unk in (tokenizer.eos_token_id, tokenizer.pad_token_id) else unk  # GPT-2's is its end
        texts = ((row, text) for row, texts in texts_of_rows for text in texts)
        while part := list(itertools.islice(texts, NUM_TOKENIZED)):
            for row, text, ids in self._ids_of(part):
                if isinstance(ids, Exception):
                    unwritten.setdefault(row, ids)
                    continue
                lengths[row] = max(len(ids), lengths.get(row, 0))
                if unk in ids:
                    unknown.setdefault(row, text)
        check_values(iter(unwritten.items()), column, num_rows, _raise)
        if unknown:
            logger.warning(
                "Column `%s`: %d of %d rows have something that the tokenizer does not know, for which the model learns to "
                "write %s; the first is row %d, %r.",
                column,
                len(unknown),
                num_rows,
                tokenizer.unk_token,
                min(unknown),
                unknown[min(unknown)],
            )
        too_long = {row: length for row, length in lengths.items() if length > num_positions}
        if too_long:
            first = min(too_long)
            cuts = f" (max_caption_length={num_positions} cuts them)" if hasattr(self, "max_caption_length") else ""
            raise ValueError(
                f"Row {first}, column `{column}`: the labels have {too_long[first]} tokens, but the decoder has only "
                f"{num_positions} positions. Shorten the labels{cuts}, or build the decoder with a larger max_position_embeddings. "
                f"({len(too_long)} of {num_rows} rows are too long, by up to {max(too_long.values()) - num_positions}.)"
            )


def _raise(error: Exception) -> None:
    raise ValueError(str(error)) from error


def checked_text(value: Any, name: str = "text") -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string; it is a {type(value).__name__}: {value!r}.")
    return value


def as_vision_processor(processing_class, decoder_start_token_id: int | None) -> VisionProcessor:
    """The processor in the form that the trainers use: ours as it is, an image processor with a tokenizer as text."""
    if isinstance(processing_class, TextProcessor) and processing_class.decoder_start_token_id is None:
        processing_class = copy.copy(processing_class)  # the user's own stays as it was
        processing_class.decoder_start_token_id = decoder_start_token_id
    if isinstance(processing_class, TextProcessor) and decoder_start_token_id is not None:
        start = processing_class.decoder_start_token_id
        if start != decoder_start_token_id:
            raise ValueError(
                f"The processor's decoder_start_token_id is {start}, but the model's is {decoder_start_token_id}: "
                "leave out the processor's, or give both the same id."
            )
    if isinstance(processing_class, VisionProcessor):
        return processing_class
    if isinstance(processing_class, ProcessorMixin) and {"image_processor", "tokenizer"} <= set(
        type(processing_class).get_attributes()
    ):
        return TextProcessor(processing_class.image_processor, processing_class.tokenizer, decoder_start_token_id)
    kind = "tokenizer" if isinstance(processing_class, PreTrainedTokenizerBase) else type(processing_class).__name__
    raise TypeError(
        f"processing_class is a {kind}, but a trainer needs a processor for both the images and the targets: a vision_rl "
        "processor, a transformers processor with image_processor and tokenizer (TrOCRProcessor, DonutProcessor, ...), or "
        "TextProcessor(image_processor, tokenizer)."
    )


@naming_arguments
def completion_text(completion: Any) -> str:
    """A completion in words: text as it is, boxes and segments as JSON, of a map or a picture only its size."""
    return completion if isinstance(completion, str) else json.dumps(_plain(completion), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return f"{value.width} x {value.height} picture"
    if isinstance(value, np.ndarray | torch.Tensor):
        flat = np.asarray(value)
        return f"{' x '.join(map(str, flat.shape))} map" if flat.size > 1000 else _plain(flat.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, str | int | bool | None) else str(value)


def check_return_tensors(return_tensors: str | None) -> None:
    """Transformers' processors take this keyword; ours make torch tensors."""
    if return_tensors not in ("pt", None):
        raise ValueError(
            f"return_tensors={return_tensors!r} is not supported: the processors of vision_rl make torch tensors, 'pt'."
        )


def image_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as it is in the data set, also where its pixels have been resized beforehand.

    Of a photo they are those that it has when it is turned as its camera says.
    """
    return image.info.get(ORIGINAL_SIZE) or shown_size(image)


def whole_image_size(image_processor: Any, what: str) -> tuple[int, int]:
    """Height and width to which an image processor stretches the whole image, so that every pixel keeps its place.

    Raises:
        ValueError: for one without a fixed size, and for one that crops or pads, where `what` would lie elsewhere.
    """
    size = dict(image_processor.size)
    if not {"width", "height"} <= set(size):
        raise ValueError(
            f"The image processor's size is {size}: {what} need a fixed size, such as {{'height': 224, 'width': 224}}."
        )
    crops = getattr(image_processor, "do_center_crop", None) and dict(image_processor.crop_size) != size
    moving = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin")
    options = [name for name in moving if getattr(image_processor, name, None)] + ["do_center_crop"] * bool(crops)
    if options:
        raise ValueError(
            f"The image processor has {', '.join(options)}: it cuts or moves the image, and {what} would lie elsewhere than in "
            "the pixels. Set that to False, or take vision_rl.models.load_image_processor(name, image_size)."
        )
    return size["height"], size["width"]


def as_in_data_set(image: Any, row: int) -> Image.Image:
    """The RGB picture of a row at the size that completions are in, also where it has been resized beforehand."""
    picture = rgb_image(image, row)
    size = image_size(picture)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
