"""The recipes of the package and how they are chained: each starts from the folder that another has written."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vision_rl.cli.parser import recipe_files


@dataclass
class Recipe:
    """A recipe of the package, by what chains it to others."""

    name: str
    content: dict[str, Any]

    @classmethod
    def all(cls) -> list["Recipe"]:
        return [cls(path.stem, yaml.safe_load(path.read_text())) for path in recipe_files()]

    def starts_from(self, folder: str) -> bool:
        return folder in (self.content.get("model"), self.content.get("stage1"))


def require_folders(models: Iterable[str | None]) -> None:
    """What a run goes on from is there, or may be on the Hub.

    Raises:
        FileNotFoundError: for a folder that is not there, with the command that makes it, where a recipe does.
    """
    for model in filter(None, models):
        if Path(model).exists():
            continue
        for recipe in Recipe.all():
            if recipe.content["output_dir"] == model:
                command = f"vision-rl {recipe.content['command']} --config {recipe.name}"
                raise FileNotFoundError(f"{model} does not exist yet: run `{command}` first, which makes it.")
        if Path(model).is_absolute() or model.startswith(".") or model.count("/") > 1:  # no name that the Hub may have
            raise FileNotFoundError(
                f"There is no folder {model} with a model: check the path, or do the run first whose output_dir it is."
            )
