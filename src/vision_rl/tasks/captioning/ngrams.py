"""The n-grams of captions as arrays, and in how many images' captions each of them occurs."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np

from vision_rl.arguments import check_number, described, naming_arguments
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize


MAX_ORDER = 4  # CIDEr counts n-grams of one to four words
END = "\ue000"  # the word that stands for the end of a caption: no letter, so that no text is tokenised to it
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no information of the earlier words is lost
_FILE_VERSION = 1

Tokenize = Callable[[list[str]], list[str]]  # captions to their tokens, joined by spaces


@dataclass
class NgramCounts:
    """How often each n-gram occurs in each of `C` captions; a row for each pair of the two that occurs.

    An n-gram is known by a 64-bit hash of its words. Ten million different ones share a hash by chance with a
    probability of 3e-6, and no vocabulary has to be kept.
    """

    caption: np.ndarray  # (P,) index of the caption, in ascending order
    ngram: np.ndarray  # (P,) index into `hashes`, ascending within a caption
    count: np.ndarray  # (P,)
    hashes: np.ndarray  # (K,) uint64, ascending
    order: np.ndarray  # (K,) number of words - 1
    num_words: np.ndarray  # (C,)

    def from_caption(self, first: int) -> "NgramCounts":
        """The captions from this one on."""
        rows = slice(np.searchsorted(self.caption, first), None)
        return NgramCounts(
            caption=self.caption[rows] - first,
            ngram=self.ngram[rows],
            count=self.count[rows],
            hashes=self.hashes,
            order=self.order,
            num_words=self.num_words[first:],
        )


def count_ngrams(captions: Sequence[str]) -> NgramCounts:
    """Counts the n-grams of tokenised captions, one to four words long."""
    split = [caption.split() for caption in captions]
    num_words = np.fromiter(map(len, split), np.int64, len(split))
    words = np.fromiter((_word_hash(word) for caption in split for word in caption), np.uint64, num_words.sum())
    caption_of_word = np.repeat(np.arange(len(split)), num_words)
    words_left = np.cumsum(num_words)[caption_of_word] - np.arange(len(words))  # to the caption's end, this included
    hashes, captions_of, orders = [], [], []
    ngram = np.zeros_like(words)
    for order in range(MAX_ORDER):
        ngram = ngram[: len(words) - order] * _MULTIPLIER + words[order:] if order < len(words) else ngram[:0]
        inside = words_left[: len(ngram)] > order
        hashes.append(ngram[inside])
        captions_of.append(caption_of_word[: len(ngram)][inside])
        orders.append(np.full(inside.sum(), order, np.int8))
    unique, first, index = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    pairs, count = np.unique(np.concatenate(captions_of) * len(unique) + index, return_counts=True)
    caption, which = np.divmod(pairs, max(len(unique), 1))
    return NgramCounts(caption, which, count, unique, np.concatenate(orders)[first], num_words)


class DocumentFrequency:
    """The number of images in whose references each n-gram occurs. CIDEr gives common n-grams little weight.

    Args:
        hashes: `(K,)` uint64, of the n-grams, ascending.
        counts: `(K,)`, how many images have each.
        num_images: how many images there are.
        append_eos: whether the end of each reference counts as a word.

    Raises:
        ValueError: for arrays that are not so, and counts below 0 or above `num_images`: a common n-gram would be paid for.
    """

    def __init__(self, hashes: np.ndarray, counts: np.ndarray, num_images: int, append_eos: bool = False):
        for name, values in (("hashes", hashes), ("counts", counts)):
            if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
                raise ValueError(f"{name} must be an array (K,) of integers; it is {described(values)}.")
        check_number("num_images", num_images, least=1, most=2**53, whole=True)
        if len(hashes) != len(counts):
            raise ValueError(f"There are {len(hashes)} hashes but {len(counts)} counts: give one of each per n-gram.")
        if hashes.dtype != np.uint64 or (hashes[1:] <= hashes[:-1]).any():
            raise ValueError(
                "hashes must be of uint64 and in ascending order, because they are looked up by bisection."
            )
        if len(counts) and not 0 <= counts.min() <= counts.max() <= num_images:
            raise ValueError(
                f"counts must be from 0 to num_images, which is {num_images}; they are from {counts.min()} to {counts.max()}."
            )
        self.hashes, self.counts, self.num_images, self.append_eos = hashes, counts, num_images, append_eos

    @classmethod
    @naming_arguments
    def from_references(
        cls, references: list[list[str]], append_eos: bool = False, tokenize: Tokenize | None = ptb_tokenize
    ) -> "DocumentFrequency":
        """Counted over all references of a training set.

        Args:
            references: the captions of each image, raw text.
            append_eos: count the end of a caption as a word, for rewards that do.
            tokenize: captions to tokens joined by spaces; `None` where they are that already.

        Raises:
            ValueError: for a flat list of strings, an image without a caption or a caption that is no string.
        """
        check_references(references)
        hashes, counts = [], []
        for start in range(0, len(references), 4096):  # bounds the memory
            part = references[start : start + 4096]
            true_texts = [text for image in part for text in image]
            texts = with_end(tokenized_references(true_texts, tokenize), append_eos)
            ngrams = count_ngrams(texts)
            image_of_caption = np.repeat(np.arange(len(part)), [len(image) for image in part])
            hashes.append(ngrams.hashes)
            counts.append(images_with(ngrams, image_of_caption, np.ones(len(part))))
        unique, index = np.unique(np.concatenate(hashes), return_inverse=True)
        total = np.bincount(index, np.concatenate(counts), len(unique)).astype(np.int64)
        return cls(unique, total, len(references), append_eos)

    def __len__(self) -> int:
        return len(self.hashes)

    def of_hashes(self, hashes: np.ndarray) -> np.ndarray:
        """The number of images of each hash, `(K,)`; 0 for an unknown one."""
        if len(self) == 0:
            return np.zeros(len(hashes), np.int64)
        place = np.searchsorted(self.hashes, hashes).clip(max=len(self) - 1)
        return np.where(self.hashes[place] == hashes, self.counts[place], 0)

    @naming_arguments
    def of_ngrams(self, ngrams: list[str]) -> np.ndarray:
        """The number of images of each n-gram, its words joined by spaces: `df.of_ngrams(["a dog", f"dog {END}"])`."""
        hashes = np.zeros(len(ngrams), np.uint64)
        for index, ngram in enumerate(ngrams):
            value = np.zeros(1, np.uint64)  # an array: its overflow is meant
            for word in ngram.split():
                value = value * _MULTIPLIER + np.uint64(_word_hash(word))
            hashes[index] = value[0]
        return self.of_hashes(hashes)

    def save(self, path: str | Path) -> None:
        """Writes an `.npz` file."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                version=_FILE_VERSION,
                hashes=self.hashes,
                counts=self.counts.astype(np.uint32),
                num_images=self.num_images,
                append_eos=self.append_eos,
            )

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequency":
        """Reads what `save` wrote.

        Raises:
            ValueError: for a file of another version, or of another kind.
        """
        again = "make it again with DocumentFrequency.from_references(...).save(path)"
        try:
            file = np.load(path, allow_pickle=False)
            content = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile and numpy raise many kinds of damaged bytes
            raise ValueError(f"{path} holds no document frequencies: {again}.") from error
        if not {"version", "hashes", "counts", "num_images", "append_eos"} <= set(content):
            raise ValueError(f"{path} holds {sorted(content)} and no document frequencies: {again}.")
        if any(content[name].size != 1 for name in ("version", "num_images", "append_eos")):
            raise ValueError(
                f"{path} is damaged, as version, num_images and append_eos must be one number each: {again}."
            )
        if content["version"].item() != _FILE_VERSION:
            raise ValueError(
                f"{path} is of version {content['version']}, but this vision_rl reads version {_FILE_VERSION}: {again}."
            )
        try:
            counts = content["counts"].astype(np.int64, casting="safe")
            return cls(content["hashes"], counts, content["num_images"].item(), bool(content["append_eos"].item()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): {again}.") from error


def images_with(ngrams: NgramCounts, image_of_caption: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The summed `weights (I,)` of the images that have each of K n-grams in at least one caption, `(K,)`."""
    num_ngrams = max(len(ngrams.hashes), 1)
    images, ngram = np.divmod(np.unique(image_of_caption[ngrams.caption] * num_ngrams + ngrams.ngram), num_ngrams)
    return np.bincount(ngram, weights[images], len(ngrams.hashes))


def tokenized(captions: list[str], tokenize: Tokenize | None) -> list[str]:
    return captions if tokenize is None else tokenize(captions)


def tokenized_references(captions: list[str], tokenize: Tokenize | None) -> list[str]:
    """Tokenise captions that come again in every epoch and evaluation. Each is read once a run."""
    return list(map(_ptb_tokens, captions)) if tokenize is ptb_tokenize else tokenized(captions, tokenize)


@lru_cache(maxsize=1 << 20)  # COCO has 0.6 million captions
def _ptb_tokens(caption: str) -> str:
    return ptb_tokenize([caption])[0]


def with_end(captions: list[str], append_eos: bool | Sequence[bool]) -> list[str]:
    """Tokenised captions with the word `END` behind all, none, or those that are marked."""
    marks = [append_eos] * len(captions) if isinstance(append_eos, bool) else append_eos
    if len(marks) != len(captions):
        raise ValueError(f"append_eos has {len(marks)} entries for {len(captions)} captions: give one per caption.")
    return [f"{text} {END}" if mark else text for text, mark in zip(captions, marks, strict=True)]


def check_candidates(candidates: list[str], references: list[list[str]]) -> None:
    """Strings, as many as there are images."""
    if isinstance(candidates, str):
        raise ValueError(f"The captions must be a list of strings, one per image; they are the string {candidates!r}.")
    for row, caption in enumerate(candidates):
        if not isinstance(caption, str):
            raise ValueError(f"Captions must be strings; caption {row} is a {type(caption).__name__}: {caption!r}.")
    if len(candidates) != len(references):
        raise ValueError(
            f"There are {len(candidates)} captions but the references of {len(references)} images: give one caption "
            "per image."
        )


def check_references(references: list[list[str]]) -> None:
    """One list an image, of one string or more."""
    expected = (
        "references must have a list of captions per image, such as [['a dog', 'a black dog runs'], ['two cats']]"
    )
    if isinstance(references, str) or len(references) == 0:
        raise ValueError(f"{expected}; they are {references!r}.")
    for row, captions in enumerate(references):
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            shown = cast(object, captions)
            raise ValueError(f"{expected}; entry {row} is the {type(shown).__name__} {shown!r}.")
        if len(captions) == 0:
            raise ValueError(f"Image {row} has no reference: leave it out, or give it a caption to compare with.")
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(
                    f"References must be strings; image {row} has a {type(caption).__name__}: {caption!r}."
                )


@lru_cache(maxsize=2**18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
