"""Captions through a WordPiece tokenizer and back: the share whose words, as CIDEr compares them, are still the same.

    python benchmarks/wordpiece.py --tokenizer google-bert/bert-base-uncased --captions captions_val2017.json

`captions` is COCO's captions JSON. Three ways to decode are compared: the tokenizer's own, the tokenizer's with
`clean_up_tokenization_spaces`, and that of `CaptioningProcessor`.
"""

import argparse
import json

from measuring import report
from transformers import AutoTokenizer

from vision_rl.tasks.captioning import ptb_tokenize
from vision_rl.tasks.captioning.processing import rejoined


def main(tokenizer: str, captions: str) -> list[dict]:
    wordpiece = AutoTokenizer.from_pretrained(tokenizer)
    with open(captions, encoding="utf-8") as file:
        texts = [" ".join(annotation["caption"].split()) for annotation in json.load(file)["annotations"]]
    ids, words = wordpiece(texts)["input_ids"], ptb_tokenize(texts)

    def decoded(**how) -> list[str]:
        return wordpiece.batch_decode(ids, skip_special_tokens=True, **how)

    ways = {
        "as it is": decoded(),
        "clean_up_tokenization_spaces": decoded(clean_up_tokenization_spaces=True),
        "CaptioningProcessor": [rejoined(text) for text in decoded()],
    }
    rows = []
    for name, made in ways.items():
        equal = sum(a == b for a, b in zip(ptb_tokenize(made), words, strict=True))
        rows.append({"captions": len(texts), "decoded by": name, "equal": equal, "%": 100 * equal / len(texts)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="google-bert/bert-base-uncased")
    parser.add_argument("--captions", required=True)
    report("wordpiece", main(**vars(parser.parse_args())))
