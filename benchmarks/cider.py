"""CIDEr-D: captions a second against pycocoevalcap, on the same tokens, and how far the scores differ.

    pip install pycocoevalcap
    python benchmarks/cider.py

Captions are made up: words as frequent as Zipf's law has them, five references of ten words or so an image, and eight
candidates that are references with words changed. Each figure is the best of five runs, in turns.
"""

import argparse
import itertools
import time

import numpy as np
from pycocoevalcap.cider.cider import Cider

from vision_rl.tasks.captioning import DocumentFrequency, cider_d, ptb_tokenize


VOCABULARY = ["".join(letters) for letters in itertools.product("bcdfglmnprst", "aeiou", "bcdfglmnprst", "aeo")]


def made_up(rng: np.random.Generator, num_images: int, num_candidates: int) -> tuple[list[str], list[list[str]]]:
    """Candidates, and the references of each."""
    chance = 1 / np.arange(1, len(VOCABULARY) + 1)
    chance /= chance.sum()

    def caption(like: list[str] | None = None) -> str:
        words = [VOCABULARY[index] for index in rng.choice(len(VOCABULARY), rng.integers(8, 14), p=chance)]
        if like is not None:  # half of the words are those of a reference
            kept = like[rng.integers(len(like))].split()
            words = [kept[i] if i < len(kept) and rng.random() < 0.5 else word for i, word in enumerate(words)]
        return " ".join(words)

    candidates, references = [], []
    for _ in range(num_images):
        truth = [caption() for _ in range(5)]
        candidates += [caption(truth) for _ in range(num_candidates)]
        references += [truth] * num_candidates
    return candidates, references


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(num_images: int, num_candidates: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    frequency = DocumentFrequency.from_references(made_up(rng, 5000, 1)[1], tokenize=None)
    candidates, references = made_up(rng, num_images, num_candidates)
    truth, found = dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}
    runs = {
        "pycocoevalcap, frequencies of the batch": lambda: Cider().compute_score(truth, found),
        "vision_rl, frequencies of the batch": lambda: cider_d(candidates, references, tokenize=None),
        "vision_rl, frequencies of a training set": lambda: cider_d(candidates, references, frequency, tokenize=None),
        "vision_rl, the same with tokenising": lambda: cider_d(candidates, references, frequency),
        "ptb_tokenize alone, of the candidates": lambda: ptb_tokenize(candidates),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run))
    baseline = next(iter(best.values()))
    print(f"{len(candidates)} captions, {num_candidates} an image with 5 references")
    for name, time_taken in best.items():
        print(f"{name:42s} {len(candidates) / time_taken:10.0f} captions/s {baseline / time_taken:8.1f}x")
    difference = np.abs(Cider().compute_score(truth, found)[1] - cider_d(candidates, references, tokenize=None)).max()
    print(f"largest difference of a score: {difference:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--num_candidates", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    main(**vars(parser.parse_args()))
