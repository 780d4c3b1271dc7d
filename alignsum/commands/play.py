"""Compare runs on a dialogue of your own in a browser; see collecting/play.py."""

from collections.abc import Sequence

from alignsum.commands.options import run_command
from collecting.play import play


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    return run_command("play", play, args, "run folders, such as runs/lora runs/ppo")
