"""The page of this module's Space; `evaluate.load` does not need it."""

from pathlib import Path

from vision_rl.metric_space import make_page


if __name__ == "__main__":
    make_page(Path(__file__).with_name("colorfulness.py")).launch()
