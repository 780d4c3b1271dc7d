"""Parse command lines: what the commands share."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reporting.runs import Run

log = logging.getLogger("alignsum")


def make_parser(command: str, description: str, example: str = "") -> argparse.ArgumentParser:
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


def read_runs(
    paths: Sequence[Path], check: Callable[["Run"], None] = lambda _: None
) -> tuple[list["Run"], list[str]]:
    """Read run folders and log what cannot be used.

    Args:
        paths: The folders.
        check: Raises ValueError for a run that the command cannot use.

    Returns:
        The usable runs, and a sentence about each folder or file that could not be used.

    Raises:
        ValueError: No run can be used.
    """
    from reporting import runs as work

    usable, problems = [], []
    found, unreadable = work.read_runs(paths)
    for run in found:
        try:
            check(run)
            usable.append(run)
        except ValueError as error:
            problems.append(f"{run.path}: {error}")
    problems = [*unreadable, *problems]
    for problem in problems:
        log.error("%s", problem)
    if not usable:
        raise ValueError("no folder holds a run that can be shown.")
    return usable, problems
