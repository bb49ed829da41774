"""`vision-rl COMMAND`: the paper's steps from the shell, without a script of one's own."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from vision_rl.arguments import is_of_ours
from vision_rl.cli import commands
from vision_rl.cli.launch import launch
from vision_rl.cli.parser import arguments_with_home
from vision_rl.cli.reading import TRAINING


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
MISTAKES = (OSError, ImportError, TypeError, ValueError)  # with which a wrong input ends
TRACEBACK = "VISION_RL_TRACEBACK"  # of the environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the input are one line, not a traceback.

    Once it runs, only what this library says in a sentence of its own, and what files and imports lack, is one line: any
    other error may be a fault of a reward or of this library. A training that ends by an error may have run for hours, so
    that its traceback is always shown.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    rest = [part for argument in arguments_with_home(rest) for part in _of_launch(argument)]
    if command not in COMMANDS:
        nearest = get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        print(f"vision-rl: {command!r} is not a command.{hint} `vision-rl --help` lists them.", file=sys.stderr)
        return 2
    try:
        if command in RANKED and "--accelerate_config" in rest:
            return launch(command, rest)
        run = COMMANDS[command](rest)
    except MISTAKES as error:
        if os.environ.get(TRACEBACK):
            raise
        return _tell(command, error)
    try:
        run()
    except MISTAKES as error:
        is_plain = isinstance(error, OSError | ImportError) or is_of_ours(error)
        if os.environ.get(TRACEBACK) or command in TRAINING or not is_plain:
            raise
        return _tell(command, error)
    return 0


def _tell(command: str, error: Exception) -> int:
    """The error as one line, which says how to see more where it is not a sentence of this library."""
    told = str(error) or type(error).__name__
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
        told = f"{error.filename} cannot be written, because a file is where a folder should be: give another path."
    more = "" if is_of_ours(error) else f" ({TRACEBACK}=1 shows where this comes from.)"
    print(f"vision-rl {command}: {told}{more}", file=sys.stderr)
    return 1


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
