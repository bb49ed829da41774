"""`vision-rl COMMAND`: the paper's steps from the shell, without a script of one's own."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from vision_rl.cli import commands
from vision_rl.cli.launch import launch


COMMANDS = {
    "prepare": commands.prepare,
    "stage1": commands.stage1,
    "mle": commands.mle,
    "tune": commands.tune,
    "eval": commands.evaluate,
    "predict": commands.predict,
    "analyze": commands.analyze,
    "report": commands.report,
    "convert-uvim": commands.convert_uvim,
    "env": commands.env,
}
RANKED = ("mle", "stage1", "tune", "eval")  # several ranks can share these


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the input are one line, not a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    rest = [part for argument in rest for part in _of_launch(argument)]
    if command not in COMMANDS:
        nearest = get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        print(f"vision-rl: {command!r} is not a command.{hint} `vision-rl --help` lists them.", file=sys.stderr)
        return 2
    try:
        if command in RANKED and "--accelerate_config" in rest:
            return launch(command, rest)
        run = COMMANDS[command](rest)
    except (OSError, TypeError, ValueError) as error:
        if os.environ.get("VISION_RL_TRACEBACK"):
            raise
        print(f"vision-rl {command}: {error}", file=sys.stderr)
        return 1
    run()
    return 0


def _of_launch(argument: str) -> list[str]:
    """`--name=value` of a launch as two arguments, since `launch` takes them out before the options are parsed."""
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name in ("--accelerate_config", "--num_processes") else [argument]


def usage() -> str:
    lines = [f"  {name:14}{command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vision-rl COMMAND [options]",
            "",
            "Tune vision models with task rewards.",
            "",
            *lines,
            "",
            "`vision-rl COMMAND --help` lists the options of a command; --config takes a YAML file of options, or the name of "
            "a recipe.",
        ]
    )
