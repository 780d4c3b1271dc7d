"""A comparison as a table: for a terminal (rich) and for a page (Markdown)."""

from collections.abc import Sequence

from rich.table import Table

from reporting.cells import choose_columns
from reporting.comparison import COMPARED, Comparison
from reporting.formats import LABELS, format_estimate, format_interval, scale_of
from reporting.markdown import escape_markdown, lay_table

_LEFT = ("run", "notes")
CAPTION = (
    "ROUGE F1 and toxicity x 100 on the test split, with 95 % bootstrap intervals over n "
    "dialogues; ROUGE is the mean over the references (refs) of a dialogue; reward is the "
    "classifier's raw logit, KL that to the reference at the end of PPO, nats a sequence; time is "
    "that of training (of the test where nothing is trained), memory the peak of the GPU's tensors "
    "(of the whole process where there is no GPU)."
)
SEEDS_CAPTION = (
    "Rows of several seeds give the mean over the runs, with an interval over runs and dialogues."
)


def caption(comparison: Comparison) -> str:
    """What the numbers of the table are."""
    several = any(len(group.runs) > 1 for group in comparison.groups)
    return f"{CAPTION} {SEEDS_CAPTION}" if several else CAPTION


def make_rows(comparison: Comparison) -> list[list[str]]:
    """Give the column titles and a row for each group; small print is behind a line break."""
    columns = choose_columns(comparison)
    rows = [[column.title for column in columns]]
    for place in range(len(comparison.groups)):
        rows.append([column.make(comparison, place).lines for column in columns])
    return rows


def make_table(comparison: Comparison) -> Table:
    """Lay the groups out for a terminal."""
    table = Table(
        title="Comparison",
        caption=caption(comparison),
        title_justify="left",
        caption_justify="left",
    )
    titles, *rows = make_rows(comparison)
    for name in titles:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def make_differences(comparison: Comparison) -> list[list[str]]:
    """Give the paired differences of all groups to the baseline, titles first; none: no rows."""
    before = comparison.baseline
    titles = ["run", *(LABELS.get(metric, metric) for metric in COMPARED), "runs"]
    rows = []
    for place, group in enumerate(comparison.groups):
        found = [comparison.difference(before, place, metric) for metric in COMPARED]
        if any(found):
            cells = []
            for metric, gap in zip(COMPARED, found, strict=True):
                how = scale_of(metric)
                value = format_estimate(gap, True, *how) if gap else "-"
                interval = format_interval(gap, True, *how) if gap else ""
                cells.append(f"{value}\n{interval}" if interval else value)
            counts = f"{len(group.runs)} against {len(comparison.groups[before].runs)}"
            rows.append([group.label, *cells, counts])
    return [titles, *rows] if rows else []


def make_markdown(comparison: Comparison, sentences: Sequence[str], figures: dict[str, str]) -> str:
    """Write the comparison as a page: table, reading, differences, problems, figures by title."""
    titles, *rows = make_rows(comparison)
    parts = ["# Comparison", lay_table(titles, rows, _LEFT), caption(comparison)]
    if sentences:
        parts.append("## Reading\n\n" + "\n".join(map(_item, sentences)))
    if differences := make_differences(comparison):
        label = escape_markdown(comparison.groups[comparison.baseline].label)
        parts += [f"## Differences to {label}", lay_table(differences[0], differences[1:], _LEFT)]
        parts.append("Paired over the dialogues that both sides were tested on, with intervals.")
    if comparison.problems:
        parts.append("## Not shown\n\n" + "\n".join(map(_item, comparison.problems)))
    parts += [f"![{title}]({path})" for title, path in figures.items()]
    return "\n\n".join(parts) + "\n"


def _item(text: str) -> str:
    return f"- {escape_markdown(text)}"
