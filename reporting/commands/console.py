"""The terminal of the commands, and how they read a list of names."""

import rich
from rich.console import Console

# A table of all columns needs this much; a file or a pipe has it, whatever rich would assume.
_WIDTH = 230


def wide_console() -> Console:
    """The terminal; where there is none, one that is wide enough for our tables."""
    console = rich.get_console()
    return console if console.is_terminal else Console(width=_WIDTH)


def split_names(names: str) -> list[str]:
    """Take names with commas between apart."""
    return [name.strip() for name in names.split(",") if name.strip()]
