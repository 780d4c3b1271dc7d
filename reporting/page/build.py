"""Put the page together: what each part shows, and one file with style, script and data in it."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from reporting import chart_list
from reporting.cells import EMPTY, Cell, Column, choose_columns, make_notes
from reporting.charts import Chart, Dots, Histogram, Panel, Scatter
from reporting.comparison import COMPARED, HEADLINE, Comparison
from reporting.formats import LABELS, format_estimate, format_interval, scale_of
from reporting.groups import differing
from reporting.page.drawing import draw
from reporting.page.examples import list_examples
from reporting.page.microscope import list_rollouts
from reporting.tables import caption
from reporting.verdict import make_verdict

_HERE = Path(__file__).parent
_SCRIPTS = ("core.js", "tables.js", "examples.js", "microscope.js")
_STEADY = re.compile(r"(ROUGE-\w+|n = [\d,]+|[-+]\d[\d.]*)")
_LOWER_IS_BETTER = ("toxicity",)


class Figure(NamedTuple):
    """A chart as it stands in the page: title, what y is, the drawing."""

    title: str
    unit: str
    drawing: Markup


class TableRow(NamedTuple):
    """A row of the table: place of the group, whether it is one of its runs, cells by column."""

    place: int
    is_member: bool
    cells: list[tuple[Column, Cell]]


class Difference(NamedTuple):
    """A row of differences: the group, a cell and its class for each metric, the runs behind it."""

    place: int
    label: str
    cells: list[tuple[str, Cell, str]]
    runs: str


def build_page(comparison: Comparison, command: str = "") -> str:
    """Build report.html.

    Args:
        comparison: What it shows.
        command: The command line that made it.

    Returns:
        The page: nothing in it points outside.
    """
    rollouts, broken = list_rollouts(comparison)
    examples = list_examples(comparison)
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"steady": steady, "setting": write_setting, "version": write_version}
    page = environment.get_template("template.html").render(
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704
        hashes={"style": hash_source(style), "script": hash_source(script)},
        data=embed(
            {
                "examples": examples,
                "rollouts": rollouts,
                "metrics": _metrics(),
                "chosen": _chosen(comparison),
            }
        ),
        command=command,
        comparison=comparison,
        labels=LABELS,
        compared=COMPARED,
        problems=[*comparison.problems, *broken],
        verdict=make_verdict(comparison),
        count=len(examples["ids"]),
        has_texts=bool(examples["runs"]),
        has_rollouts=bool(rollouts),
        has_ppo=any(map(chart_list.is_ppo, comparison.runs)),
        columns=choose_columns(comparison),
        rows=make_rows(comparison),
        caption=caption(comparison),
        differences=make_differences(comparison),
        figures=make_figures(comparison),
        settings=differing([run for run in comparison.runs if run.config]),
        configured=[run.name for run in comparison.runs if run.config],
        versions=list_versions(comparison),
        notes={run.name: "; ".join(make_notes(run)) for run in comparison.runs},
    )
    # A name may hold bytes that are no text, which a file of text cannot.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def embed(data: object) -> Markup:
    """Write data as JSON that stays data wherever it stands in a page.

    `<`, `>`, `&`, quotes and everything beyond ASCII are escapes of JSON, so that no text can end
    the element that holds it, open a comment or break a line. What is not finite is null.
    """
    return htmlsafe_json_dumps(_finite(data), dumps=json.dumps, separators=(",", ":"))


def steady(text: str) -> Markup:
    """Keep a line from breaking within "ROUGE-1", "n = 300" or "-7.7"."""
    parts = _STEADY.split(text)
    pieces = [
        Markup('<span class="steady">{}</span>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    ]
    return Markup("").join(pieces)


def write_setting(value: object) -> str:
    """A setting as a config file has it; nothing where there is none."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def write_version(version: str | None) -> str:
    """A version; of a commit's 40 digits the first ten, and what is behind them."""
    found = version or "-"
    return found[:10] + found[40:] if len(found) >= 40 else found


def hash_source(text: str) -> str:
    """The hash by which the page's policy lets this script or style run, and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def make_rows(comparison: Comparison) -> list[TableRow]:
    """Give a row for each group, and behind one of several runs a row for each of them."""
    columns = choose_columns(comparison)
    rows = []
    for place, group in enumerate(comparison.groups):
        cells = [(column, column.make(comparison, place)) for column in columns]
        rows.append(TableRow(place, False, cells))
        if len(group.runs) > 1:
            for run in group.runs:
                alone = Comparison([run], price_per_hour=comparison.price_per_hour)
                own = [(column, column.make(alone, 0)) for column in columns]
                seed = [
                    (column, Cell(f"seed {run.seed}") if column.key == "runs" else cell)
                    for column, cell in own
                ]
                rows.append(TableRow(place, True, seed))
    return rows


def make_differences(comparison: Comparison) -> dict[int, list[Difference]]:
    """Give for each group that others can be held against the differences to it."""
    tables = {}
    for before in range(len(comparison.groups)):
        rows = [
            _difference(comparison, before, after)
            for after in range(len(comparison.groups))
            if after != before
        ]
        rows = [row for row in rows if any(cell != EMPTY for _, cell, _ in row.cells)]
        if rows:
            tables[before] = rows
    return tables


def _difference(comparison: Comparison, before: int, after: int) -> Difference:
    cells = []
    for metric in COMPARED:
        gap = comparison.difference(before, after, metric)
        if gap is None:
            cells.append((metric, EMPTY, ""))
            continue
        how = scale_of(metric)
        text, interval = format_estimate(gap, True, *how), format_interval(gap, True, *how)
        up = -1 if metric in _LOWER_IS_BETTER else 1
        low, high = (0.0, 0.0) if gap.low is None or gap.high is None else (gap.low, gap.high)
        kind = "better" if up * low > 0 and up * high > 0 else ""
        kind = "worse" if up * low < 0 and up * high < 0 else kind
        cell = Cell(text, (interval,) if interval else (), gap.value, gap)
        cells.append((metric, cell, kind))
    group = comparison.groups[after]
    runs = f"{len(group.runs)} against {len(comparison.groups[before].runs)}"
    return Difference(after, group.label, cells, runs)


def make_figures(comparison: Comparison) -> dict[str, list[Figure]]:
    """Draw the charts, by the part of the page that they stand in."""
    dots = chart_list.metric_dots(comparison)
    first = [dots.pop(metric) for metric in (HEADLINE, "toxicity") if metric in dots]
    parts: dict[str, Sequence[Chart]] = {
        "first": first,
        "metrics": list(dots.values()),
        "tradeoffs": chart_list.tradeoffs(comparison),
        "learning": chart_list.learning_curves(comparison),
        "ppo": chart_list.ppo_curves(comparison),
        "toxicity": list(chart_list.toxicity_changes(comparison).values()),
        "sweeps": chart_list.sweeps(comparison),
    }
    return {name: [_figure(chart) for chart in charts] for name, charts in parts.items()}


def _figure(chart: Chart) -> Figure:
    match chart:
        case Panel() | Scatter():
            unit = chart.y_label
        case Dots():
            unit = chart.label
        case Histogram():
            unit = "examples"
    return Figure(chart.title, unit, draw(chart))


def list_versions(comparison: Comparison) -> list[str]:
    """Name the packages whose versions any run has recorded."""
    names: dict[str, None] = {}
    for run in comparison.runs:
        names |= dict.fromkeys(run.summary.get("versions") or {})
    return list(names)


def _metrics() -> list[dict[str, Any]]:
    """How the script shows the metrics of examples."""
    return [
        {
            "key": metric,
            "label": LABELS.get(metric, metric),
            "scale": scale_of(metric)[0],
            "decimals": scale_of(metric)[1],
            "better": -1 if metric in _LOWER_IS_BETTER else 1,
        }
        for metric in COMPARED
    ]


def _chosen(comparison: Comparison) -> dict[str, str | None]:
    """The runs whose gain the examples are first sorted by: the best one's over the baseline's."""
    best = comparison.groups[comparison.ranked[0]].first.name if comparison.ranked else None
    return {"own": best, "other": comparison.groups[comparison.baseline].first.name}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
