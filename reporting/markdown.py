"""Tables in Markdown whose cells hold any text."""

import re
from collections.abc import Collection, Sequence

# What GitHub's Markdown gives a meaning within a line; "_" has one at the edges of words only.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def escape_markdown(text: str) -> str:
    """Write a text so that it is shown as it is, in one cell of a table; line breaks as `<br>`."""
    return "<br>".join(_SPECIAL.sub(r"\\\g<0>", line) for line in text.splitlines())


def lay_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()
) -> str:
    """Lay out a table.

    Args:
        columns: The heads.
        rows: As many cells each, their texts not yet escaped.
        left: Columns that are set flush left; numbers stand right.
    """
    rule = ["---" if name in left else "---:" for name in columns]
    escaped = [[escape_markdown(cell) for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:]))
