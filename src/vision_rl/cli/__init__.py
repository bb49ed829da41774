"""The command `vision-rl`."""

from vision_rl.cli.main import main


__all__ = ["main"]
