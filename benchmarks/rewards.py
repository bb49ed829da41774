"""All rewards and metrics against the code that the field uses: captions, detection and mAP, panoptic quality, colour.

    pip install pycocoevalcap scikit-image
    OMP_NUM_THREADS=1 python benchmarks/rewards.py

Runs cider.py, detection.py, panoptic.py and colorfulness.py, each of which checks first that the results are equal.
"""

import argparse

import cider
import colorfulness
import detection
import panoptic
from measuring import report


def main(captioned: int, completions: int, evaluated: int, side: int, rounds: int) -> None:
    report("cider", cider.main(captioned, num_candidates=8, rounds=rounds))
    report("detection", detection.main(completions, evaluated, rounds))
    report("panoptic", panoptic.main(side, num_images=8, rounds=rounds))
    report("colorfulness", colorfulness.main(side, rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captioned", type=int, default=256, help="images with 8 captions each")
    parser.add_argument("--completions", type=int, default=128, help="of a detector")
    parser.add_argument("--evaluated", type=int, default=300, help="images that mAP is computed of")
    parser.add_argument("--side", type=int, default=512, help="of maps and photos")
    parser.add_argument("--rounds", type=int, default=9)
    main(**vars(parser.parse_args()))
