"""`vision-rl COMMAND`: what is done from the shell and needs no script of one's own."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the input are one line, not a traceback."""
    parser = argparse.ArgumentParser(prog="vision-rl", description="Tune vision models with task rewards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser(
        "convert-uvim",
        help="a published UViM checkpoint (npz) as a transformers model",
        description="Convert a checkpoint of gs://big_vision/uvim, of stage I or II, so that from_pretrained loads it.",
    )
    convert.add_argument("checkpoint", metavar="FILE.npz")
    convert.add_argument("output_dir", metavar="OUT_DIR")
    options = parser.parse_args(arguments)
    try:
        convert_uvim(options.checkpoint, options.output_dir)
    except (OSError, ValueError) as error:
        print(f"vision-rl {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def convert_uvim(checkpoint: str, output_dir: str) -> None:
    from vision_rl.models import uvim  # not at the top: torch and transformers take seconds, --help should not

    model = uvim.convert_uvim(checkpoint, output_dir)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output_dir}: {type(model).__name__}, {count / 1e6:.1f} M parameters")
