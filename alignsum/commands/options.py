"""Parse command lines: what the commands share."""

import argparse
import logging
from collections.abc import Sequence

log = logging.getLogger("alignsum")


def make_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """Create a parser whose help shows an example and keeps line breaks."""
    return argparse.ArgumentParser(
        prog=f"python -m alignsum {command}", description=description, epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip


def add_switch(parser: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    """Add an option that takes "true" or "false"; without a value it means true."""
    parser.add_argument(
        name, nargs="?", const=True, default=default, type=parse_bool, metavar="true|false",
        help=f"{text} (default: {str(default).lower()})",
    )  # fmt: skip


def parse_bool(text: str) -> bool:
    """Read "true" or "false"."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return values[text.lower()]


def parse_names(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def require_runs(runs: Sequence[object], problems: Sequence[str]) -> None:
    """Report folders that could not be read, and stop if none could.

    Raises:
        ValueError: There is no readable run.
    """
    for problem in problems:
        log.error("%s", problem)
    if not runs:
        raise ValueError("no folder holds a run that can be shown.")
