"""CIDEr-D against pycocoevalcap on the same tokens: captions a second, and how far the scores differ.

    pip install pycocoevalcap
    python benchmarks/cider.py

The captions are made up: word frequencies follow Zipf's law, each image has five references of about ten words, and
eight candidates that are references with some words changed. Times are CPU time; the two take turns. The benchmark
stops if scores differ by more than 1e-9.
"""

import argparse
import itertools

import numpy as np
from measuring import clock_of, in_turns, ratio, report
from pycocoevalcap.cider.cider import Cider

from vision_rl.tasks.captioning import DocumentFrequency, cider_d, ptb_tokenize


VOCABULARY = ["".join(letters) for letters in itertools.product("bcdfglmnprst", "aeiou", "bcdfglmnprst", "aeo")]


def made_up(rng: np.random.Generator, num_images: int, num_candidates: int) -> tuple[list[str], list[list[str]]]:
    """Candidates, and the references of each."""
    chance = 1 / np.arange(1, len(VOCABULARY) + 1)
    chance /= chance.sum()

    def caption(like: list[str] | None = None) -> str:
        words = [VOCABULARY[index] for index in rng.choice(len(VOCABULARY), rng.integers(8, 14), p=chance)]
        if like is not None:  # half of the words are from a reference
            kept = like[rng.integers(len(like))].split()
            words = [kept[i] if i < len(kept) and rng.random() < 0.5 else word for i, word in enumerate(words)]
        return " ".join(words)

    candidates, references = [], []
    for _ in range(num_images):
        truth = [caption() for _ in range(5)]
        candidates += [caption(truth) for _ in range(num_candidates)]
        references += [truth] * num_candidates
    return candidates, references


def main(num_images: int, num_candidates: int, rounds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    frequency = DocumentFrequency.from_references(made_up(rng, 20 * num_images, 1)[1], tokenize=None)
    candidates, references = made_up(rng, num_images, num_candidates)
    truth, found = dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}
    difference = np.abs(Cider().compute_score(truth, found)[1] - cider_d(candidates, references, tokenize=None)).max()
    assert difference < 1e-9, f"scores differ by {difference:.1e}"
    theirs = "pycocoevalcap, frequencies of the batch"
    runs = {
        theirs: lambda: Cider().compute_score(truth, found),
        "vision_rl, frequencies of the batch": lambda: cider_d(candidates, references, tokenize=None),
        "vision_rl, frequencies of a training set": lambda: cider_d(candidates, references, frequency, tokenize=None),
        "vision_rl, the same with tokenising": lambda: cider_d(candidates, references, frequency),
        "ptb_tokenize alone, of the candidates": lambda: ptb_tokenize(candidates),
    }
    seconds = in_turns(runs, rounds, clock_of(kind="cpu"))
    return [
        {
            "captions of 5 references": len(candidates),
            "by": name,
            "captions/s": len(candidates) / min(values),
            "times": ratio(seconds[theirs], values),
            "differs by": float(difference) if name.endswith("of the batch") else None,
        }
        for name, values in seconds.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--num_candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    report("cider", main(**vars(parser.parse_args())))
