"""A progress bar over rows that are worked on in chunks."""

from collections.abc import Iterator

from rich.console import Console
from rich.progress import track


def in_chunks(rows: int, size: int, description: str, show_progress: bool) -> Iterator[slice]:
    """Give the slices that cut so many rows into chunks, with a bar on stderr meanwhile.

    Args:
        rows: Number of rows.
        size: Rows in a chunk, at most.
        description: What is done to them.
        show_progress: Whether there is a bar.
    """
    for first in track(
        range(0, rows, size),
        description=description,
        console=Console(stderr=True),
        disable=not show_progress,
        transient=True,
    ):
        yield slice(first, first + size)
