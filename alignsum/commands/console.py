"""What the commands share: the terminal, and what they say of what cannot be read."""

import logging
from collections.abc import Sequence

import rich
from rich.console import Console

log = logging.getLogger("report")

RUNS_HELP = "run folders, in the order of the table"

# A table of all columns needs this much; a file or a pipe has it, whatever rich would assume.
_WIDTH = 230


def wide_console() -> Console:
    """The terminal; where there is none, one that is wide enough for our tables."""
    console = rich.get_console()
    return console if console.is_terminal else Console(width=_WIDTH)


def split_names(names: str) -> list[str]:
    """Take names with commas between apart."""
    return [name.strip() for name in names.split(",") if name.strip()]


def any_good(good: Sequence[object], problems: Sequence[str], folders: int) -> bool:
    """Say what could not be read, and whether anything is left."""
    for problem in problems:
        log.error("%s", problem)
    if not good:
        log.error("None of the %d folders holds a run that can be shown.", folders)
    return bool(good)
