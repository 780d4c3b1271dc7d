"""Show and write what `report.py toxicity` found."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from common.run_folder import write_text
from metrics.intervals import Estimate
from metrics.toxicity import TOXIC_ABOVE
from reporting.cells import make_change_cell
from reporting.figures import draw_bars
from reporting.markdown import escape_markdown, lay_table
from reporting.scoring import find_scoring_caution
from reporting.toxicity import Example, ToxicityRun, sort_by_gain, sort_by_toxicity

log = logging.getLogger(__name__)

_COLUMNS = ("run", "n", "toxicity", "standard deviation", f"over {TOXIC_ABOVE}", "reward")
_CAPTION = (
    "Toxicity (probability of the toxic label), its standard deviation over the n dialogues, and "
    f"the share of summaries over {TOXIC_ABOVE}, all x 100; reward is a raw logit. Before → after "
    "training where there is a before, and the paired change, with 95 % bootstrap intervals over "
    "the dialogues."
)
_FIELDS = (
    "run", "id", "prediction_before", "prediction", "reward_before", "reward", "reward_gain",
    "toxicity_before", "toxicity", "dialogue",
)  # fmt: skip


def make_row(run: ToxicityRun) -> list[str]:
    """One run's cells."""
    n = len(run.examples)
    shares = (
        make_change_cell(run.estimates, name, n).lines
        for name in ("toxicity", "toxicity_std", "toxic_share")
    )
    return [
        run.name,
        str(n),
        *shares,
        make_change_cell(run.estimates, "reward", n, 1, digits=2).lines,
    ]


def make_table(runs: Sequence[ToxicityRun]) -> Table:
    """Lay the runs out for a terminal."""
    caption = escape("\n".join([_CAPTION, *find_cautions(runs)]))
    table = Table(title="Toxicity", caption=caption, title_justify="left", caption_justify="left")
    for name in _COLUMNS:
        justify = "left" if name == "run" else "right"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for run in runs:
        table.add_row(*map(escape, make_row(run)))
    return table


def find_cautions(runs: Sequence[ToxicityRun]) -> list[str]:
    """Say why runs are not to be compared with each other: other dialogues, other measurements."""
    cautions = [find_scoring_caution((run.name, run.scoring) for run in runs)]
    if len({frozenset((one.id, one.dialogue) for one in run.examples) for run in runs}) > 1:
        cautions.append("Careful: not all runs were tested on the same dialogues.")
    return [caution for caution in cautions if caution]


def write_toxicity(
    runs: Sequence[ToxicityRun], problems: Sequence[str], top: int, out: Path
) -> None:
    """Write toxicity.md, toxicity.csv, toxicity_examples.csv and plots/toxicity_by_run.png.

    Args:
        runs: At least one.
        problems: What could not be read, for the reader of the page.
        top: Examples in each table of the page.
        out: The folder to write to.
    """
    figure = "plots/toxicity_by_run.png"
    title = "Toxicity of test summaries, with 95 % intervals over the dialogues"
    draw_bars(out / figure, title, "x 100", {run.name: make_bars(run) for run in runs})
    write_text(out / "toxicity.csv", make_csv(runs))
    write_text(out / "toxicity_examples.csv", make_examples_csv(runs))
    write_text(out / "toxicity.md", make_page(runs, problems, top, figure))
    log.info("Wrote %s", out / "toxicity.md")


def make_bars(run: ToxicityRun) -> dict[str, Estimate]:
    """Mean and share, before and after, x 100; what has no before is the text of after."""
    names = {"mean": "toxicity", f"share over {TOXIC_ABOVE}": "toxic_share"}
    bars = {}
    for label, name in names.items():
        if run.is_paired:
            bars[f"{label}, before"] = run.estimates[f"{name}_before"].scaled(100)
        bars[f"{label}, after"] = run.estimates[name].scaled(100)
    return bars


def make_csv(runs: Sequence[ToxicityRun]) -> str:
    """Every estimate in long form under the name that it has in summary.json, not times 100."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])
    for run in runs:
        for name, estimate in run.estimates.items():
            cells = ("" if part is None else part for part in estimate)
            writer.writerow([run.name, f"test/{name}", *cells])
    return text.getvalue()


def make_examples_csv(runs: Sequence[ToxicityRun]) -> str:
    """Every example; the highest gain in reward first, or without a before the most toxic text."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _FIELDS, restval="")
    writer.writeheader()
    for run in runs:
        for one in (sort_by_gain if run.is_paired else sort_by_toxicity)(run.examples):
            row: dict[str, object] = {"run": run.name, "id": one.id, "dialogue": one.dialogue}
            row |= dict(zip(("prediction", "toxicity", "reward"), one.after, strict=True))
            if one.before:
                old = ("prediction_before", "toxicity_before", "reward_before")
                row |= dict(zip(old, one.before, strict=True)) | {"reward_gain": one.gain}
            writer.writerow(row)
    return text.getvalue()


def make_page(runs: Sequence[ToxicityRun], problems: Sequence[str], top: int, figure: str) -> str:
    """Write the page: all runs in a table, then each with its worst cases and its gains."""
    parts = ["# Toxicity", lay_table(_COLUMNS, [make_row(run) for run in runs], ["run"]), _CAPTION]
    parts += map(escape_markdown, find_cautions(runs))
    parts.append(f"![Toxicity by run]({figure})")
    if problems:
        lines = (f"- {escape_markdown(problem)}" for problem in problems)
        parts.append("## Not shown\n\n" + "\n".join(lines))
    for run in runs:
        parts += [f"## {escape_markdown(run.name)}", *make_sections(run, top)]
    return "\n\n".join(parts) + "\n"


def make_sections(run: ToxicityRun, top: int) -> list[str]:
    """The worst cases, and both ends of the examples sorted by gain in reward."""
    worst = sort_by_toxicity(run.examples)[:top]
    parts = [f"### The {len(worst)} most toxic", lay_examples(worst)]
    if not run.is_paired:
        return parts
    ranked = sort_by_gain(run.examples)
    if len(ranked) <= 2 * top:
        return [*parts, f"### All {len(ranked)} by gain in reward", lay_examples(ranked)]
    return [
        *parts,
        f"### The {top} highest gains in reward", lay_examples(ranked[:top]),
        f"### The {top} lowest gains in reward", lay_examples(ranked[-top:]),
    ]  # fmt: skip


def lay_examples(examples: Sequence[Example]) -> str:
    """Examples with their scores, as in the original's notebook; at least one."""
    if examples[0].before is None:
        columns, left = ["id", "text", "toxicity", "reward"], 2
    else:
        columns = ["id", "text before", "text after", "toxicity", "reward before", "reward after"]
        columns, left = [*columns, "gain"], 3
    rows = []
    for one in examples:
        toxicity = " → ".join(f"{100 * text.toxicity:.1f}" for text in one.texts)
        rewards = [f"{text.reward:z.2f}" for text in one.texts]
        gain = [f"{one.gain:+z.2f}"] if one.before else []
        rows.append([one.id, *(text.text for text in one.texts), toxicity, *rewards, *gain])
    return lay_table(columns, rows, columns[:left])
