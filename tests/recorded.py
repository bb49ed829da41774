"""Recorded answers of reference programs. golden/README.md says which program made each file, and from what."""

import json
from pathlib import Path

import numpy as np


GOLDEN = Path(__file__).parent / "golden"


def golden(name: str):
    """The arrays of an `.npz`, each of which is read when it is asked for, or the content of a `.json`.

    Raises:
        FileNotFoundError: the files are part of the repository, so a test without its file fails.
    """
    path = GOLDEN / name
    return json.loads(path.read_text("utf-8")) if path.suffix == ".json" else np.load(path)
