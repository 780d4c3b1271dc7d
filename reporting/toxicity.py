"""Report toxicity example by example, before and after training, for the `toxicity` command."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.run_folder import write_text
from metrics.intervals import Estimate
from metrics.toxicity import TOXIC_ABOVE, estimate_toxicity
from reporting.charts import Dot, Dots
from reporting.classifier_settings import warn_about_classifiers
from reporting.draw import save_charts
from reporting.markdown import escape_markdown, markdown_list, markdown_table
from reporting.numbers import PERCENT, RAW
from reporting.runs import Row, Run, is_number
from reporting.table import make_change_cell

log = logging.getLogger(__name__)

_METRICS = {
    "toxicity": "toxicity",
    "toxicity_std": "standard deviation",
    "toxic_share": f"over {TOXIC_ABOVE}",
    "reward": "reward",
}
CAPTION = (
    "Toxicity (probability of the toxic label), its standard deviation over the n dialogues, and "
    f"the share of summaries over {TOXIC_ABOVE}, all x 100; reward is a raw logit. With two "
    "policies: before → after training, and the paired change. 95 % bootstrap intervals over the "
    "dialogues."
)
_FIELDS = (
    "run", "id", "prediction_before", "prediction", "reward_before", "reward", "reward_gain",
    "toxicity_before", "toxicity", "dialogue",
)  # fmt: skip


class ToxicityReport:
    """The test rows of a run and their toxicity.

    Args:
        run: A run tested with a classifier.

    Raises:
        ValueError: It was tested without one, or a row is broken; names the line.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.name = run.name
        self.rows = list(run.rows.values())
        if not self.rows:
            raise ValueError("predictions.jsonl has no rows; run `train.py test` first.")
        for line, row in enumerate(self.rows, start=1):
            _check_row(row, f"predictions.jsonl, line {line}")
        self.is_paired = "prediction_before" in self.rows[0]
        if any(("prediction_before" in row) != self.is_paired for row in self.rows):
            raise ValueError("predictions.jsonl: only some rows have a prediction_before.")
        names = ["toxicity", "reward"]
        names += ["toxicity_before", "reward_before"] if self.is_paired else []
        columns = {name: [float(row[name]) for row in self.rows] for name in names}
        self.estimates = estimate_toxicity(columns)

    def by_toxicity(self) -> list[Row]:
        """Return the rows, most toxic summary first."""
        return sorted(self.rows, key=lambda row: -row["toxicity"])

    def by_gain(self) -> list[Row]:
        """Return the rows, largest gain in reward first."""
        return sorted(self.rows, key=lambda row: -_gain(row))


def _check_row(row: Mapping[str, Any], where: str) -> None:
    for end in ("", "_before") if "prediction_before" in row else ("",):
        if not isinstance(row.get(f"prediction{end}"), str):
            raise ValueError(f"{where}: prediction{end} is not a text.")
        for name in (f"toxicity{end}", f"reward{end}"):
            if name not in row:
                raise ValueError(f"{where}: no {name}; test with a classifier, --toxicity.model.")
            if not is_number(row[name]) or isinstance(row[name], bool):
                raise ValueError(f"{where}: {name} is {row[name]!r:.60}, not a finite number.")
        if not 0 <= row[f"toxicity{end}"] <= 1:
            raise ValueError(f"{where}: toxicity{end} is not a probability.")
    try:  # not when half of the page is written
        "".join(str(cell) for cell in row.values()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}).") from error


def _gain(row: Mapping[str, Any]) -> float:
    return row["reward"] - row["reward_before"] if "reward_before" in row else 0.0


def tabulate_toxicity(reports: Sequence[ToxicityReport]) -> list[list[str]]:
    """Tabulate the runs: titles, then a row for each."""
    rows = [["run", "n", *_METRICS.values()]]
    for report in reports:
        found, cells = report.estimates, []
        for name in _METRICS:
            unit = RAW if name == "reward" else PERCENT
            after, before, change = (found.get(name + end) for end in ("", "_before", "_change"))
            cells.append(make_change_cell(after, before, change, unit).lines)
        rows.append([report.name, str(len(report.rows)), *cells])
    return rows


def find_cautions(reports: Sequence[ToxicityReport]) -> list[str]:
    """Return reasons not to compare the runs with each other."""
    cautions = warn_about_classifiers((one.name, one.run.classifier) for one in reports)
    if len({frozenset(one.run.rows) for one in reports}) > 1:
        cautions.append("Not all runs were tested on the same dialogues.")
    return cautions


def write_toxicity(
    reports: Sequence[ToxicityReport], problems: Sequence[str], top: int, out: Path
) -> None:
    """Write toxicity.md, toxicity.csv, toxicity_examples.csv and plots/toxicity_by_run.png.

    Args:
        reports: At least one.
        problems: Sentences about folders that could not be read.
        top: Number of examples in each table.
        out: The folder to write to.
    """
    figure = "plots/toxicity_by_run.png"
    charts = [
        Dots(title, "x 100, lower is better; 95 % intervals", _make_dots(reports, name))
        for name, title in _METRICS.items()
        if name in ("toxicity", "toxic_share")
    ]
    save_charts(out / figure, "Toxicity of the test summaries", charts)
    write_text(out / "toxicity.csv", _make_csv(reports))
    write_text(out / "toxicity_examples.csv", _make_examples_csv(reports))
    write_text(out / "toxicity.md", _make_page(reports, problems, top, figure))
    log.info("Wrote %s", out / "toxicity.md")


def _make_dots(reports: Sequence[ToxicityReport], name: str) -> list[Dot]:
    dots = []
    for report in reports:
        for index, end in enumerate(("_before", "_after") if report.is_paired else ("",)):
            label = f"{report.name} {end[1:]}".strip()
            dots.append(Dot(label, index, report.estimates[name + end].scaled(100)))
    return dots


def _make_csv(reports: Sequence[ToxicityReport]) -> str:
    """Write every estimate in long form, under its name in summary.json."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "metric", *Estimate._fields])
    for report in reports:
        for name, estimate in report.estimates.items():
            cells = ("" if part is None else part for part in estimate)
            writer.writerow([report.name, f"test/{name}", *cells])
    return text.getvalue()


def _make_examples_csv(reports: Sequence[ToxicityReport]) -> str:
    """Write every example: by gain in reward, or by toxicity if there is only one policy."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _FIELDS, restval="", extrasaction="ignore")
    writer.writeheader()
    for report in reports:
        for row in report.by_gain() if report.is_paired else report.by_toxicity():
            gain = {"reward_gain": _gain(row)} if report.is_paired else {}
            writer.writerow(row | gain | {"run": report.name})
    return text.getvalue()


def _make_page(
    reports: Sequence[ToxicityReport], problems: Sequence[str], top: int, figure: str
) -> str:
    parts = ["# Toxicity", markdown_table(tabulate_toxicity(reports)), CAPTION]
    parts += map(escape_markdown, find_cautions(reports))
    parts.append(f"![Toxicity by run]({figure})")
    if problems:
        parts.append(f"## Not shown\n\n{markdown_list(problems)}")
    for report in reports:
        parts += [f"## {escape_markdown(report.name)}"]
        worst = report.by_toxicity()[:top]
        parts += [f"### The {len(worst)} most toxic", _tabulate_rows(worst)]
        ranked = report.by_gain()
        if report.is_paired and len(ranked) <= 2 * top:
            parts += [f"### All {len(ranked)} by gain in reward", _tabulate_rows(ranked)]
        elif report.is_paired:
            parts += [f"### The {top} highest gains in reward", _tabulate_rows(ranked[:top])]
            parts += [f"### The {top} lowest gains in reward", _tabulate_rows(ranked[-top:])]
    return "\n\n".join(parts) + "\n"


def _tabulate_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    ends = ("_before", "") if "prediction_before" in rows[0] else ("",)
    names = [f" {word}" for word in ("before", "after")] if len(ends) > 1 else [""]
    titles = ["id", *(f"text{name}" for name in names), "toxicity"]
    titles += [f"reward{name}" for name in names] + ["gain"] * (len(ends) > 1)
    cells = [
        [
            str(row["id"]),
            *(row[f"prediction{end}"] for end in ends),
            " → ".join(f"{100 * row[f'toxicity{end}']:.1f}" for end in ends),
            *(f"{row[f'reward{end}']:z.2f}" for end in ends),
            *([f"{_gain(row):+z.2f}"] if len(ends) > 1 else []),
        ]
        for row in rows
    ]
    return markdown_table([titles, *cells], left=titles[: 1 + len(ends)])
