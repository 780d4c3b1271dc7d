"""Compare runs by what their folders hold: the work of `report.py compare`.

Values and intervals are those of summary.json: the numbers the run itself reported, so that a table
never says anything else than the run did. predictions.jsonl is read only to pair examples between
runs, which tells two runs apart where their separate intervals cannot.
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from metrics.intervals import Estimate, paired_change
from metrics.rouge import KEYS
from reporting.figures import draw_bars
from reporting.runs import Run
from reporting.tables import LABELS, format_estimate, format_interval, make_markdown
from run_folder import write_text

log = logging.getLogger(__name__)


def write_comparison(runs: Sequence[Run], problems: Sequence[str], out: Path) -> None:
    """Write comparison.md, comparison.csv and plots/rouge_by_run.png.

    Args:
        runs: At least one run.
        problems: What could not be read, for the reader of the page.
        out: The folder to write to.
    """
    bars = {
        run.name: {
            LABELS[key]: run.metrics[f"test/{key}"].scaled(100)
            for key in KEYS
            if f"test/{key}" in run.metrics
        }
        for run in runs
    }
    bars = {name: group for name, group in bars.items() if group}
    figure = "plots/rouge_by_run.png" if bars else None
    if figure:
        title = "Test ROUGE by run, with 95 % intervals over the dialogues"
        draw_bars(out / figure, title, "F1 x 100", bars)
    write_text(out / "comparison.md", make_markdown(runs, read_out(runs), problems, figure))
    write_text(out / "comparison.csv", make_csv(runs))
    log.info("Wrote %s", out / "comparison.md")


def make_csv(runs: Sequence[Run]) -> str:
    """Every final metric of every run in long form, not multiplied by 100; costs as metrics too."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])
    for run in runs:
        costs = {
            f"cost/{key}": run.summary[key]
            for key in ("seconds", "peak_memory_bytes")
            if run.summary.get(key) is not None
        }
        parameters = run.summary.get("parameters") or {}
        costs |= {f"parameters/{key}": value for key, value in parameters.items()}
        for name, value in costs.items():
            writer.writerow([run.name, name, value, "", "", ""])
        for name, estimate in run.metrics.items():
            writer.writerow([run.name, name, *("" if part is None else part for part in estimate)])
    return text.getvalue()


def read_out(runs: Sequence[Run]) -> list[str]:
    """Say in plain sentences what the numbers show, and what they do not."""
    key = "test/rouge1"
    models = [run for run in runs if run.has_model]
    ranked = sorted(
        (run for run in models if key in run.metrics), key=lambda run: -run.metrics[key].value
    )
    lines = []
    if ranked:
        best = ranked[0]
        lines.append(f"Best test ROUGE-1: {best.name} with {_in_words(best.metrics[key])}.")
        if len(ranked) > 1:
            lines[0] += " " + _tell_apart(best, ranked[1])
    for run in runs:
        change = run.metrics.get("test/toxicity_change")
        if change is not None and change.low is not None and change.high is not None:
            clear = "clear of zero" if change.low > 0 or change.high < 0 else "not clear of zero"
            lines.append(
                f"{run.name} changed mean toxicity (x 100) by {_in_words(change, sign=True)}, "
                f"paired over the same dialogues: {clear}."
            )
    tested = [run for run in runs if run.examples]
    if len({frozenset(run.examples) for run in tested}) > 1:
        lines.append("Careful: not all runs were tested on the same dialogues.")
    if len({run.summary.get("backbone") for run in models}) > 1:
        lines.append(
            "Careful: not all runs started from the same backbone (see their config.yaml)."
        )
    return lines


def _tell_apart(best: Run, second: Run) -> str:
    """One sentence on whether the best run is clear of the next."""
    one, two = best.metrics["test/rouge1"], second.metrics["test/rouge1"]
    start = f"Next is {second.name} with {100 * two.value:.1f};"
    if best.examples and best.examples.keys() == second.examples.keys():
        after = [best.examples[key] for key in best.examples]
        gap = paired_change([second.examples[key] for key in best.examples], after)
        if gap.low is not None:
            verdict = "" if gap.low > 0 else "not "
            return (
                f"{start} over the same {gap.n} dialogues the difference is "
                f"{format_estimate(gap)} ({format_interval(gap)}), {verdict}clear of zero."
            )
    if one.low is None or two.high is None:
        return f"{start} there is no interval to tell them apart by."
    if one.low > two.high:
        return f"{start} their intervals do not overlap."
    return (
        f"{start} their intervals overlap, and without the same dialogues they are not told apart."
    )


def _in_words(estimate: Estimate, sign: bool = False) -> str:
    interval = (
        f"95 % interval {format_interval(estimate, sign)}, " if estimate.low is not None else ""
    )
    return f"{format_estimate(estimate, sign)} ({interval}n = {estimate.n})"
