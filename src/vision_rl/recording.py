"""Options and command lines as a record of a run keeps them: plain values, and nothing that lets somebody in."""

import re
import shlex
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np


_SECRET_IN_JSON = re.compile(r'("\w*(?:token|api_key|secret|password)"\s*:\s*)"[^"]*"', re.IGNORECASE)


def plain(value: Any) -> Any:
    """The value in the types that JSON and YAML have."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def is_secret(name: str) -> bool:
    """Whether the value of an option, or of a variable of the environment, lets somebody in."""
    return name.lower().endswith(("token", "api_key", "secret", "password"))


def without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those whose value lets somebody in, inside of others too."""
    return {
        name: without_secrets(value) if isinstance(value, dict) else value
        for name, value in options.items()
        if not is_secret(name)
    }


def shown_command(argv: list[str]) -> str:
    """The command line as one types it, without what follows the option of a token."""
    shown, secret = [], False
    for part in argv:
        part = _SECRET_IN_JSON.sub(r'\1"..."', part)
        name, equals, _ = part.partition("=")
        named = name.startswith("--") and is_secret(name.replace("-", "_"))
        shown.append("..." if secret else f"{name}=..." if named and equals else part)
        secret = named and not equals
    if shown and Path(shown[0]).parts[-3:] == ("vision_rl", "cli", "__main__.py"):  # of a rank that was started
        return shlex.join(["vision-rl", *shown[1:]])
    return shlex.join([Path(shown[0]).name if Path(shown[0]).name == "vision-rl" else shown[0], *shown[1:]])
