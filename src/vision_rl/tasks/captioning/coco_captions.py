"""The metrics of captions that coco-caption prints: CIDEr-D, BLEU and ROUGE-L, all on the same tokens."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vision_rl.arguments import naming_arguments
from vision_rl.tasks.captioning.cider import cider_d
from vision_rl.tasks.captioning.ngrams import (
    MAX_ORDER,
    DocumentFrequency,
    Tokenize,
    check_candidates,
    check_references,
    tokenized,
    tokenized_references,
)
from vision_rl.tasks.captioning.ptb_tokenizer import ptb_tokenize


ROUGE_BETA = 1.2  # recall counts for more than precision
# Words that no caption ends with; models tuned for CIDEr without an end token learn to break off at them.
UNFINISHED = {
    "a",
    "an",
    "the",
    "his",
    "her",
    "its",
    "and",
    "or",
    "is",
    "are",
    "of",
    "in",
    "on",
    "at",
    "to",
    "for",
    "from",
}
UNFINISHED |= {"with", "by", "near", "into", "onto", "upon"}


@naming_arguments
def coco_captions(
    predictions: list[str],
    references: list[list[str]],
    document_frequency: DocumentFrequency | None = None,
    tokenize: Tokenize | None = ptb_tokenize,
) -> dict[str, float | list[float]]:
    """CIDEr-D, BLEU-1 to 4 and ROUGE-L of a test set, as coco-caption prints them: 0.6 is what papers call 60.

    Args:
        predictions: one caption an image.
        references: the true captions of each image.
        document_frequency: for CIDEr-D; `None`, as in coco-caption: counted over these references.
        tokenize: captions to tokens joined by spaces; `None` where they are that already.

    Returns:
        `cider`, `bleu_1` to `bleu_4`, `rouge_l`; `unfinished`, the share of captions that end with a word such as "a" or
        "with"; `mean_length` in words; and lists with an entry a caption, `per_caption_cider` and
        `per_caption_rouge_l`. BLEU is that of the whole set, the others are means.

    Raises:
        ValueError: for an image without references, and for references that are not a list of captions an image.
    """
    candidates, grouped = _tokenized(predictions, references, tokenize)
    ciders = cider_d(candidates, grouped, document_frequency, tokenize=None)
    rouges = rouge_l(candidates, grouped, tokenize=None)
    words = [caption.split() for caption in candidates]
    return {
        "cider": float(ciders.mean()),
        **{f"bleu_{order + 1}": value for order, value in enumerate(bleu(candidates, grouped, tokenize=None))},
        "rouge_l": float(rouges.mean()),
        "unfinished": float(np.mean([bool(caption) and caption[-1] in UNFINISHED for caption in words])),
        "mean_length": float(np.mean([len(caption) for caption in words])),
        "per_caption_cider": ciders.tolist(),
        "per_caption_rouge_l": rouges.tolist(),
    }


@naming_arguments
def bleu(candidates: list[str], references: list[list[str]], tokenize: Tokenize | None = ptb_tokenize) -> list[float]:
    """BLEU-1 to BLEU-4 of a whole set of captions, as coco-caption computes it (`bleu_scorer.py`).

    The reference nearest in length counts for the brevity penalty, the shorter one of two. The arguments are those of
    `coco_captions`.
    """
    candidates, references = _tokenized(candidates, references, tokenize)
    matched, proposed = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        words, others = candidate.split(), [text.split() for text in texts]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for order in range(MAX_ORDER):
            allowed: Counter = Counter()
            for other in others:
                allowed |= _ngrams(other, order)  # the most that any one reference has
            matched[order] += (_ngrams(words, order) & allowed).total()
            proposed[order] += max(len(words) - order, 0)
    tiny, small = 1e-15, 1e-9  # coco-caption's, so that an empty set divides as there
    precision = np.cumprod((matched + tiny) / (proposed + small)) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + tiny) / (reference_length + small)
    return (precision * (np.exp(1 - 1 / ratio) if ratio < 1 else 1.0)).tolist()


@naming_arguments
def rouge_l(
    candidates: list[str], references: list[list[str]], tokenize: Tokenize | None = ptb_tokenize
) -> np.ndarray:
    """ROUGE-L of each caption `(N,)`, as coco-caption computes it: best precision and best recall, beta 1.2.

    But an empty caption has nothing in common with an empty reference; there both are one empty word. The arguments are
    those of `coco_captions`.
    """
    candidates, references = _tokenized(candidates, references, tokenize)
    scores = np.zeros(len(candidates))
    for row, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
        words, *others = (text.split(" ") if text else [] for text in (candidate, *texts))
        common = [_longest_common_subsequence(words, other) for other in others]
        if max(common) > 0:
            precision = max(common) / len(words)
            recall = max(count / len(other) for count, other in zip(common, others, strict=True) if other)
            scores[row] = (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)
    return scores


def _tokenized(
    candidates: list[str], references: list[list[str]], tokenize: Tokenize | None
) -> tuple[list[str], list[list[str]]]:
    """Checked, and as tokens joined by spaces."""
    check_references(references)
    check_candidates(candidates, references)
    texts = iter(tokenized_references([text for image in references for text in image], tokenize))
    return tokenized(candidates, tokenize), [[next(texts) for _ in image] for image in references]


def _ngrams(words: Sequence[str], order: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(order + 1)), strict=False))


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    previous = [0] * (len(b) + 1)
    for word in a:
        current = [0]
        for j, other in enumerate(b):
            current.append(previous[j] + 1 if word == other else max(previous[j + 1], current[-1]))
        previous = current
    return previous[-1]
