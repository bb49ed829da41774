"""The page of an evaluate module's Space on the Hub: predictions and references as JSON in, its numbers out."""

import json
import os
from pathlib import Path
from typing import Any

import evaluate


def compute_json(script: str | os.PathLike, predictions: str, references: str, options: str = "{}") -> dict[str, Any]:
    """Compute a module on texts of JSON, and return its result in JSON's types.

    Args:
        script: its file; a Space's folder has not its name.
        predictions, references: lists, one entry an image.
        options: a dict of what `evaluate.load` is given, such as the categories of panoptic segmentation.

    Raises:
        ValueError: naming what is no JSON, or not a list or a dict.
    """
    read = {}
    for name, text, kind in (
        ("predictions", predictions, list),
        ("references", references, list),
        ("options", options, dict),
    ):
        try:
            read[name] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{name} is not valid JSON: {error}") from None
        if not isinstance(read[name], kind):
            raise ValueError(f"{name} must be a JSON {kind.__name__}, it is a {type(read[name]).__name__}.")
    module = evaluate.load(str(script), **read.pop("options"))
    return json.loads(json.dumps(module.compute(**read), default=lambda array: array.tolist()))


def make_page(script: str | os.PathLike) -> Any:
    """Make the gradio page that a module's `app.py` launches. A Space of the kind gradio has that library."""
    import gradio

    def answer(predictions: str, references: str, options: str) -> dict[str, Any]:
        try:
            return compute_json(script, predictions, references, options)
        except (OSError, TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    empty = {"predictions": "[]", "references": "[]", "options": "{}"}
    card = Path(script).with_name("README.md").read_text(encoding="utf-8").split("---", 2)[-1]
    return gradio.Interface(
        answer,
        inputs=[gradio.Code(label=name, language="json", value=value) for name, value in empty.items()],
        outputs=gradio.JSON(label="result"),
        title=Path(script).stem,
        article=card,
        flagging_mode="never",
    )
