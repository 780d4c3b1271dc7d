"""Write a comparison: report.html, comparison.md, comparison.csv and plots/*.png."""

import csv
import io
import logging
from pathlib import Path

from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate
from reporting.answer import find_answer
from reporting.charts import save_charts
from reporting.comparison import COMPARED, Comparison
from reporting.comparison_charts import list_charts
from reporting.markdown import escape_markdown, markdown_list, markdown_table
from reporting.numbers import MINUS
from reporting.page.build import build_page
from reporting.table import (
    describe_results,
    make_differences,
    make_other_results,
    make_results,
)

log = logging.getLogger(__name__)

_TITLES = {
    "results": "Test results, with 95 % intervals over the dialogues",
    "trade_offs": "ROUGE-1 and its cost",
    "learning_curves": "Learning curves",
    "ppo": "PPO",
    "toxicity": "Toxicity before and after",
}


def write_comparison(comparison: Comparison, out: Path, command: str = "") -> None:
    """Write all files to a folder.

    Args:
        comparison: The comparison.
        out: The folder.
        command: The command line, shown in the page.
    """
    charts = list_charts(comparison)
    drawn = [name for name in charts if charts[name]]
    for name in drawn:
        save_charts(out / f"plots/{name}.png", _TITLES[name], charts[name])
    page = make_markdown(comparison)
    figures = "\n\n".join(f"![{_TITLES[name]}](plots/{name}.png)" for name in drawn)
    write_text(out / "comparison.md", f"{page}\n\n{figures}\n")
    write_text(out / "comparison.csv", make_csv(comparison))
    write_text(out / "report.html", build_page(comparison, command))
    log.info("Wrote %s, comparison.md, comparison.csv and plots/", out / "report.html")


def check_output(out: Path) -> None:
    """Check the output folder before any run is read.

    Raises:
        ValueError: It is a file or a run.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if RunFolder(out).summary.exists():
        raise ValueError(f"--out {out} is a run; name another folder for the comparison.")


def make_markdown(comparison: Comparison) -> str:
    """Write answer, tables and problems as a Markdown page."""
    parts = ["# Comparison", markdown_list(find_answer(comparison).lines)]
    results = make_results(comparison)
    if results.rows:
        parts += [markdown_table(results.texts_with_notes, left=("run", "notes"))]
        parts += [describe_results(comparison)]
    if (others := make_other_results(comparison)).rows:
        parts += ["## Reward models and classifiers", markdown_table(others.texts)]
    differences = make_differences(comparison, comparison.baseline)
    if differences.rows:
        label = escape_markdown(comparison.labels[comparison.baseline])
        parts += [f"## Differences to {label}", markdown_table(differences.texts)]
        parts.append("Paired over the dialogues that both runs were tested on.")
    if comparison.problems:
        parts.append(f"## Not shown\n\n{markdown_list(comparison.problems)}")
    return "\n\n".join(parts)


def make_csv(comparison: Comparison) -> str:
    """Write every final metric and cost of every run in long form, not multiplied by 100.

    Differences to the baseline are rows of their groups: "test/<metric>_minus_<baseline>".
    """
    rows: list[tuple[str, str, Estimate]] = []
    for run in comparison.runs:
        costs = {f"cost/{key}": run.summary.get(key) for key in ("seconds", "peak_memory_bytes")}
        for key, value in (run.summary.get("parameters") or {}).items():
            costs[f"parameters/{key}"] = value
        rows += [(run.name, n, Estimate(v)) for n, v in costs.items() if v is not None]
        rows += [(run.name, name, estimate) for name, estimate in run.metrics.items()]
    baseline = comparison.labels[comparison.baseline]
    for index, label in enumerate(comparison.labels):
        for metric in COMPARED:
            if gap := comparison.difference(comparison.baseline, index, metric):
                rows.append((label, f"test/{metric}{MINUS}{baseline}", gap))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])
    writer.writerows([name, metric, *estimate] for name, metric, estimate in rows)
    return text.getvalue()
