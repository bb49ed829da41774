"""Runs the README's Python blocks unchanged, one after the other. Start it in the repository, with `vision_rl` installed."""

import re
from pathlib import Path


def blocks() -> list[str]:
    readme = Path(__file__).parents[2] / "README.md"
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.S | re.M)


def main() -> None:
    names: dict = {"__name__": "readme"}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"README.md[{number}]", "exec"), names)


if __name__ == "__main__":
    main()
