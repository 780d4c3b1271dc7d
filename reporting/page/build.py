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
from reporting.cells import choose_columns, make_notes
from reporting.charts import Chart, Dots, Histogram, Panel, Scatter
from reporting.comparison import COMPARED, HEADLINE, Comparison
from reporting.formats import LABELS, scale_of
from reporting.groups import differing
from reporting.page.drawing import draw
from reporting.page.examples import list_examples
from reporting.page.microscope import list_rollouts
from reporting.page.rows import make_differences, make_rows
from reporting.tables import caption
from reporting.verdict import make_verdict

_HERE = Path(__file__).parent
_SCRIPTS = ("core.js", "tables.js", "examples.js", "microscope.js")
_STEADY = re.compile(r"(ROUGE-\w+|n = [\d,]+|[-+]\d[\d.]*)")


class Figure(NamedTuple):
    """A chart as it stands in the page: title, what y is, the drawing."""

    title: str
    unit: str
    drawing: Markup


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
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, default=str)  # YAML knows dates


def write_version(version: object) -> str:
    """A version; of a commit's 40 digits the first ten, and what is behind them."""
    found = str(version or "-")
    return found[:10] + found[40:] if len(found) >= 40 else found


def hash_source(text: str) -> str:
    """The hash by which the page's policy lets this script or style run, and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


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
