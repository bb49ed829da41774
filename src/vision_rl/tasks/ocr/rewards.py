"""How right a transcript is: edit distance, two rewards made from it, and the character error rate.

Texts are compared as they are, code point by code point. What should not count, such as case, spaces at the ends or
Unicode's several spellings of one letter, is for the data set to normalise.
"""

import operator
from collections.abc import Callable, Sequence

from vision_rl.arguments import check_rows


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of one character that turn `a` into `b`."""
    previous = list(range(len(b) + 1))  # from the empty prefix of `a` to every prefix of `b`
    for i, char_a in enumerate(a, start=1):
        current = [i]
        for j, char_b in enumerate(b, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (char_a != char_b)))
        previous = current
    return previous[-1]


def exact_match_reward(completions: list[str], references: list[str], **kwargs) -> list[float]:
    """1 for the text that is right in every character, else 0: what the user of a transcript feels.

    Args:
        completions: the texts that were read.
        references: the true texts, one a completion.
        kwargs: the other columns that a trainer passes; not used.
    """
    _check_texts("completions", completions, references)
    return [float(completion == reference) for completion, reference in zip(completions, references, strict=True)]


def character_accuracy_reward(
    completions: list[str],
    references: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """1 minus the edit distance as a share of the reference's length, not below 0.

    It tells one wrong character from four, so a model that never reads a whole text still learns from it. Without the
    floor, one completion that never writes its end token would score -10 where its siblings differ by 0.2, and the
    baseline, their mean, would carry that to all of them. An empty reference gives 1 to an empty completion, else 0.

    Args:
        completions: the texts that were read.
        references: the true texts, one a completion.
        log_metric: the trainer's; it is told the share of texts that are right in every character.
        kwargs: the other columns that a trainer passes; not used.
    """
    _check_texts("completions", completions, references)
    if log_metric is not None and completions:
        log_metric("exact_match", sum(map(operator.eq, completions, references)) / len(completions))
    return [
        max(0.0, 1 - edit_distance(completion, reference) / len(reference)) if reference else float(not completion)
        for completion, reference in zip(completions, references, strict=True)
    ]


def character_error_rate(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Return `cer`, edits per reference character, and `exact_match`, the share of texts without an error.

    `cer` is the corpus-level rate of jiwer and evaluate's `cer`: all edits over all reference characters, so a long
    text weighs more than a short one, and above 1 when predictions run on. Those two strip spaces first; this does
    not. Lower `cer` is better.
    """
    _check_texts("predictions", predictions, references)
    characters = sum(map(len, references))
    if characters == 0:
        raise ValueError("All references are empty, but the character error rate is a share of their characters.")
    edits = sum(map(edit_distance, predictions, references))
    exact = exact_match_reward(predictions, references)
    return {"cer": edits / characters, "exact_match": sum(exact) / len(exact)}


def _check_texts(name: str, texts: Sequence[str], references: Sequence[str]) -> None:
    for side, values in ((name, texts), ("references", references)):
        if isinstance(values, str):
            raise ValueError(f"{side} must be a list of strings, one per row; it is the string {values!r}.")
    check_rows(**{name: texts, "references": references})
    for side, values in ((name, texts), ("references", references)):
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(f"{side} must be strings; row {row} is a {type(value).__name__}: {value!r}.")
