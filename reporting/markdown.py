"""Lay out tables for Markdown and for the terminal, whatever text their cells hold."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Characters with a meaning within a line of GitHub's Markdown; "_" only at the edges of words.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def escape_markdown(text: str) -> str:
    """Escape a text so that it is displayed as it is in one cell; line breaks become `<br>`."""
    return "<br>".join(_SPECIAL.sub(r"\\\g<0>", line) for line in text.splitlines())


def markdown_table(rows: Sequence[Sequence[str]], left: Collection[str] = ("run",)) -> str:
    """Lay out a Markdown table.

    Args:
        rows: Titles, then rows of as many cells; not yet escaped.
        left: Titles of the columns aligned to the left.
    """
    rule = ["---" if name in left else "---:" for name in rows[0]]
    titles, *body = [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *body))


def markdown_list(lines: Sequence[str]) -> str:
    """Lay out a Markdown list of texts that are not yet escaped."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def terminal_table(
    rows: Sequence[Sequence[str]], left: Collection[str] = ("run",), caption: str = ""
) -> "Table":
    """Lay out a table for the terminal; arguments as for `markdown_table`."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=escape(caption), caption_justify="left"
    )
    for name in rows[0]:
        justify = "left" if name in left else "right"
        table.add_column(escape(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
