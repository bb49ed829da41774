"""`vision-rl env`: what a report of a bug needs to say."""

from vision_rl.environment import environment


def print_environment() -> None:
    print("\n".join(f"- {name}: {value}" for name, value in environment().items()))
