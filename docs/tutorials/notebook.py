"""Writes a tutorial as a notebook: its text as cells of text, its blocks of Python and of the shell as cells of code.

python docs/tutorials/notebook.py docs/tutorials/trocr.md
"""

import json
import re
import sys
from pathlib import Path


FENCE = re.compile(r"^```(python|bash)\n(.*?)^```\n", re.S | re.M)
LINK = re.compile(
    r"\[([^\]]+)\]\([\w./-]+\.(?:md|ipynb)(?:#[\w-]+)?\)"
)  # to another page, which does not travel along


def cells(page: str) -> list[dict]:
    """The page in order: text between blocks, and each block."""
    found, end = [], 0
    for block in FENCE.finditer(page):
        found += _text(page[end : block.start()])
        language, code = block.groups()
        source = code if language == "python" else f"%%bash\n{code}"
        found.append(
            {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(source)}
        )
        end = block.end()
    return found + _text(page[end:])


def notebook(page: str) -> str:
    """The file's content, in nbformat 4.5 but for the cells' ids, which 4.4 does without."""
    content = {
        "cells": cells(page),
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _text(markdown: str) -> list[dict]:
    text = LINK.sub(r"\1", markdown).strip()
    return [{"cell_type": "markdown", "metadata": {}, "source": _lines(text)}] if text else []


def _lines(source: str) -> list[str]:
    return source.rstrip("\n").splitlines(keepends=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).with_suffix(".ipynb").write_text(notebook(Path(name).read_text()))
