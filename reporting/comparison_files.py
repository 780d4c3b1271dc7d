"""Write a comparison: report.html, comparison.md, comparison.csv and plots/*.png."""

import csv
import io
import logging
from pathlib import Path

from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate
from reporting.answer import find_answer
from reporting.comparison import COMPARED, Comparison
from reporting.comparison_charts import list_charts
from reporting.draw import save_charts
from reporting.markdown import escape_markdown, markdown_list, markdown_table
from reporting.numbers import MINUS
from reporting.page.build import build_page
from reporting.runs import Run
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
    drawn = {}
    for name, charts in list_charts(comparison).items():
        if charts:
            drawn[_TITLES[name]] = f"plots/{name}.png"
            save_charts(out / drawn[_TITLES[name]], _TITLES[name], charts)
    write_text(out / "comparison.md", make_markdown(comparison, drawn))
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
        raise ValueError(f"--out {out} holds a run; name another folder for the comparison.")


def make_markdown(comparison: Comparison, figures: dict[str, str]) -> str:
    """Write answer, tables, problems and figures (path by title) as a Markdown page."""
    parts = ["# Comparison", markdown_list(find_answer(comparison).lines)]
    parts += [
        markdown_table(make_results(comparison).texts_with_notes, left=("run", "notes")),
        describe_results(comparison),
    ]
    if comparison.others:
        parts += ["## Reward models and classifiers"]
        parts += [markdown_table(make_other_results(comparison).texts)]
    differences = make_differences(comparison, comparison.baseline)
    if differences.rows:
        label = escape_markdown(comparison.labels[comparison.baseline])
        parts += [f"## Differences to {label}", markdown_table(differences.texts)]
        parts.append("Paired over the dialogues that both runs were tested on.")
    if comparison.problems:
        parts.append(f"## Not shown\n\n{markdown_list(comparison.problems)}")
    parts += [f"![{title}]({path})" for title, path in figures.items()]
    return "\n\n".join(parts) + "\n"


def make_csv(comparison: Comparison) -> str:
    """Write every final metric and cost of every run in long form, not multiplied by 100.

    Differences to the baseline are rows of their groups: "test/<metric>_minus_<baseline>".
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])

    def write(name: str, metric: str, estimate: Estimate) -> None:
        writer.writerow([name, metric, *("" if part is None else part for part in estimate)])

    for run in comparison.runs:
        for name, value in list_costs(run).items():
            write(run.name, name, Estimate(value))
        for name, estimate in run.metrics.items():
            write(run.name, name, estimate)
    baseline = comparison.labels[comparison.baseline]
    for index, label in enumerate(comparison.labels):
        for metric in COMPARED:
            if gap := comparison.difference(comparison.baseline, index, metric):
                write(label, f"test/{metric}{MINUS}{baseline}", gap)
    return text.getvalue()


def list_costs(run: Run) -> dict[str, float]:
    """Return the known costs of a run by metric."""
    costs = {
        f"cost/{key}": run.summary[key]
        for key in ("seconds", "peak_memory_bytes")
        if run.summary.get(key) is not None
    }
    parameters = run.summary.get("parameters") or {}
    return costs | {f"parameters/{key}": value for key, value in parameters.items()}
