"""CIDEr-D, the score of a caption that the paper tunes for (section 4.4), and CIDEr as it was first defined."""

from collections.abc import Sequence

import numpy as np

from vision_rl.arguments import naming_arguments
from vision_rl.tasks.captioning.ngrams import (
    MAX_ORDER,
    DocumentFrequency,
    NgramCounts,
    Tokenize,
    check_candidates,
    check_references,
    count_ngrams,
    images_with,
    tokenized,
    tokenized_references,
    with_end,
)
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize


SIGMA = 6.0  # of the length Gaussian, in bigrams


@naming_arguments
def cider_d(
    candidates: list[str],
    references: list[list[str]],
    document_frequency: DocumentFrequency | None = None,
    append_eos: bool | Sequence[bool] = False,
    tokenize: Tokenize | None = ptb_tokenize,
) -> np.ndarray:
    """CIDEr-D of each caption, as coco-caption computes it (its class is called Cider). Papers print it times 100.

    For n = 1 to 4 a caption and a reference are vectors of their n-grams, each counted and weighed by how rare it is:
    `log(images / images that have it)`. Their cosine is averaged over n and the references. The D variant counts a
    word no more often than the reference has it, and multiplies by `exp(-d^2 / (2 * 6^2))`, where d is the difference
    in length, so that neither repetition nor length pays (Vedantam et al., arXiv 1411.5726).

    Args:
        candidates: N captions.
        references: N lists of captions, one or more.
        document_frequency: how common each n-gram is. `None`: counted over these references, as a test set is
            scored; a reward takes the training set's.
        append_eos: compare the ends of captions as if they were a word, so that one that breaks off loses; a list
            marks the candidates that did end. The references all end.
        tokenize: captions to tokens joined by spaces; `None` where they are that already.

    Returns:
        `(N,)` scores from 0 to 10. All are 0 where the frequencies are of a single image: nothing is rare.

    Raises:
        ValueError: for references that are no list of lists, a missing reference, or frequencies that were counted
            with another `append_eos`.
    """
    return _scores(candidates, references, document_frequency, append_eos, tokenize, clip_and_compare_lengths=True)


@naming_arguments
def plain_cider(
    candidates: list[str],
    references: list[list[str]],
    document_frequency: DocumentFrequency | None = None,
    append_eos: bool | Sequence[bool] = False,
    tokenize: Tokenize | None = ptb_tokenize,
) -> np.ndarray:
    """CIDEr without the clipping and the length Gaussian of CIDEr-D; the rest is `cider_d`. Hardly anybody reports it."""
    return _scores(candidates, references, document_frequency, append_eos, tokenize, clip_and_compare_lengths=False)


def _scores(candidates, references, document_frequency, append_eos, tokenize, clip_and_compare_lengths) -> np.ndarray:
    check_references(references)
    check_candidates(candidates, references)
    ends = bool(append_eos) if np.ndim(append_eos) == 0 else True
    append_eos = ends if np.ndim(append_eos) == 0 else list(append_eos)
    if not isinstance(document_frequency, DocumentFrequency | None):
        raise TypeError(
            f"document_frequency is a {type(document_frequency).__name__}; it must be a DocumentFrequency, such as "
            "DocumentFrequency.load(path) of a saved file."
        )
    if document_frequency is not None and document_frequency.append_eos != ends:
        raise ValueError(
            f"The document frequencies were counted with append_eos={document_frequency.append_eos}, but the captions are "
            f"compared with append_eos={ends}: both must be the same."
        )
    images, image = _distinct(references)
    count, num_references = len(candidates), np.array([len(texts) for texts in images])  # (I,)
    texts = tokenized(candidates, tokenize)
    true_texts = tokenized_references([text for texts_of_image in images for text in texts_of_image], tokenize)
    ngrams = count_ngrams(with_end(texts, append_eos) + with_end(true_texts, ends))  # C captions

    if document_frequency is None:
        num_images = len(references)
        image_of_reference = np.repeat(np.arange(len(images)), num_references)
        frequency = images_with(ngrams.from_caption(count), image_of_reference, np.bincount(image))
    else:
        num_images, frequency = document_frequency.num_images, document_frequency.of_hashes(ngrams.hashes)
    weight, norm = _tf_idf(ngrams, np.log(num_images) - np.log(np.maximum(frequency, 1)))
    candidate, reference = _pairs(count, num_references, image)
    product = _products(ngrams, weight, candidate, reference, clip=clip_and_compare_lengths)  # (R, 4)
    norms = norm[candidate] * norm[reference]
    similarity = np.divide(product, norms, out=np.zeros_like(product), where=norms != 0).mean(1)
    if clip_and_compare_lengths:
        num_bigrams = np.maximum(ngrams.num_words - 1, 0)  # coco-caption's length
        similarity *= np.exp(-((num_bigrams[candidate] - num_bigrams[reference]) ** 2) / (2 * SIGMA**2))
    return 10 * np.bincount(candidate, similarity, count) / num_references[image]


def _distinct(references: list[list[str]]) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The references of the I images, and each candidate's image `(N,)`: samples of one image share them, read once."""
    index_of: dict[tuple[str, ...], int] = {}
    image = np.array([index_of.setdefault(tuple(texts), len(index_of)) for texts in references])
    return list(index_of), image


def _tf_idf(ngrams: NgramCounts, rarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each caption's n-grams, counted and weighed by `rarity (K,)`: `(P,)`; and the norms of its four vectors, `(C, 4)`."""
    weight = ngrams.count * rarity[ngrams.ngram]
    vector = ngrams.caption * MAX_ORDER + ngrams.order[ngrams.ngram]  # (P,) each caption has one of every order
    norm = np.sqrt(np.bincount(vector, weight**2, len(ngrams.num_words) * MAX_ORDER)).reshape(-1, MAX_ORDER)
    return weight, norm


def _pairs(count: int, num_references: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every candidate with each of its references, R pairs of captions, by their places: `(R,)` each."""
    candidate = np.repeat(np.arange(count), num_references[image])
    first_reference = count + np.cumsum(num_references) - num_references  # (I,)
    return candidate, first_reference[image][candidate] + _counted_up(num_references[image])


def _products(
    ngrams: NgramCounts, weight: np.ndarray, candidate: np.ndarray, reference: np.ndarray, clip: bool
) -> np.ndarray:
    """The scalar products `(R, 4)` of each pair of captions, for their vectors of one to four words."""
    referenced = np.zeros(len(ngrams.hashes), bool)
    referenced[ngrams.ngram[ngrams.caption >= reference.min()]] = True  # most n-grams are in no reference
    entries = np.flatnonzero((ngrams.caption <= candidate.max()) & referenced[ngrams.ngram])
    num_entries = np.bincount(ngrams.caption[entries], minlength=candidate.max() + 1)
    first_entry = np.cumsum(num_entries) - num_entries
    pair = np.repeat(np.arange(len(candidate)), num_entries[candidate])
    ours = entries[first_entry[candidate][pair] + _counted_up(num_entries[candidate])]

    keys = ngrams.caption * len(ngrams.hashes) + ngrams.ngram  # ascending
    wanted = reference[pair] * len(ngrams.hashes) + ngrams.ngram[ours]
    theirs = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    found = keys[theirs] == wanted
    pair, ours, theirs = pair[found], ours[found], theirs[found]
    product = (np.minimum(weight[ours], weight[theirs]) if clip else weight[ours]) * weight[theirs]
    place = pair * MAX_ORDER + ngrams.order[ngrams.ngram[ours]]
    return np.bincount(place, product, len(candidate) * MAX_ORDER).reshape(-1, MAX_ORDER).astype(float)


def _counted_up(lengths: np.ndarray) -> np.ndarray:
    """Count up to each length: `[2, 3]` gives `[0, 1, 0, 1, 2]`."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
