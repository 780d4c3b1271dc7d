"""Write a comparison: report.html, comparison.md, comparison.csv and plots/ as PNG and SVG."""

import csv
import io
import logging
import math
from pathlib import Path

from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate
from reporting import chart_list
from reporting.comparison import COMPARED, Comparison
from reporting.figures import draw_bars, draw_charts
from reporting.formats import MINUS
from reporting.page.build import build_page
from reporting.runs import Run
from reporting.tables import make_markdown
from reporting.verdict import make_verdict

log = logging.getLogger(__name__)


def write_comparison(comparison: Comparison, out: Path, command: str = "") -> None:
    """Write all files.

    Args:
        comparison: What to write.
        out: The folder to write to.
        command: The command line, for the reader of the page.
    """
    drawn = draw_figures(comparison, out)
    sentences = make_verdict(comparison).sentences
    write_text(out / "comparison.md", make_markdown(comparison, sentences, drawn))
    write_text(out / "comparison.csv", make_csv(comparison))
    write_text(out / "report.html", build_page(comparison, command))
    log.info("Wrote %s, comparison.md, comparison.csv and plots/", out / "report.html")


def find_output_problem(out: Path, price_per_hour: float | None) -> str | None:
    """Say why the comparison cannot be written, before anything is read."""
    if out.exists() and not out.is_dir():
        return f"--out {out} is a file; name a folder."
    if RunFolder(out).summary.exists():
        return f"--out {out} holds a run; name a folder of its own for the comparison."
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        return f"--price_per_hour has to be a number of 0 or more, got {price_per_hour}."
    return None


def draw_figures(comparison: Comparison, out: Path) -> dict[str, str]:
    """Draw plots/*.png and *.svg of what there is.

    Returns:
        The path of each PNG in `out`, by its title.
    """
    drawn = {}
    if bars := chart_list.scaled_bars(comparison):
        drawn["ROUGE by run"] = "plots/rouge_by_run.png"
        title = "Test ROUGE by run, with 95 % intervals over the dialogues"
        draw_bars(out / drawn["ROUGE by run"], title, "F1 x 100", bars)
    for name, title, charts in chart_list.figures(comparison):
        if charts:
            drawn[title] = f"plots/{name}.png"
            draw_charts(out / drawn[title], title, charts)
    return drawn


def make_csv(comparison: Comparison) -> str:
    """Every final metric of every run in long form, not multiplied by 100; costs as metrics too.

    Differences to the baseline are rows of their groups, as "test/<metric>_minus_<baseline>".
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])

    def write(name: str, metric: str, estimate: Estimate) -> None:
        writer.writerow([name, metric, *("" if part is None else part for part in estimate)])

    for run in comparison.runs:
        for name, value in list_costs(run, comparison.price_per_hour).items():
            write(run.name, name, Estimate(value))
        for name, estimate in run.metrics.items():
            write(run.name, name, estimate)
    baseline = comparison.groups[comparison.baseline].label
    for place, group in enumerate(comparison.groups):
        for metric in COMPARED:
            gap = comparison.difference(comparison.baseline, place, metric)
            if gap is not None:
                write(group.label, f"test/{metric}{MINUS}{baseline}", gap)
    return text.getvalue()


def list_costs(run: Run, price_per_hour: float | None) -> dict[str, float]:
    """Give what a run cost, as far as it is known, by metric."""
    costs = {
        f"cost/{key}": run.summary[key]
        for key in ("seconds", "peak_memory_bytes")
        if run.summary.get(key) is not None
    }
    if price_per_hour is not None and "cost/seconds" in costs:
        costs["cost/dollars"] = costs["cost/seconds"] / 3600 * price_per_hour
    parameters = run.summary.get("parameters") or {}
    return costs | {f"parameters/{key}": value for key, value in parameters.items()}
