"""Prints the lowest version of every dependency that pyproject.toml allows, as constraints for pip.

torch is left out: constraints/cpu.txt holds it, for both ends of the ranges.
"""

import re
import tomllib
from pathlib import Path


project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, floor = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
    if name != "torch":
        print(f"{name}=={floor}")
