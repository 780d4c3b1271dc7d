"""Assemble report.html from its template, style, scripts and data."""

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from reporting.answer import find_answer
from reporting.charts import Chart
from reporting.comparison import COMPARED, HEADLINE, Comparison
from reporting.comparison_charts import is_ppo, list_charts
from reporting.draw import to_svg
from reporting.numbers import ROUGE_LABELS, unit_of
from reporting.page.examples import list_examples
from reporting.page.inline_svg import inline_svg
from reporting.page.rollouts import list_rollouts
from reporting.seeds import find_differences, flatten
from reporting.table import (
    describe_results,
    list_notes,
    make_differences,
    make_other_results,
    make_results,
)

_HERE = Path(__file__).parent
_SCRIPTS = ("core.js", "tables.js", "examples.js", "tokens.js")


class Figure(NamedTuple):
    """A chart in the page: its title and its drawing."""

    title: str
    drawing: Markup


def build_page(comparison: Comparison, command: str = "") -> str:
    """Build report.html.

    Args:
        comparison: What to show.
        command: The command line that builds the page.

    Returns:
        The page, which loads nothing from elsewhere.
    """
    rollouts, unreadable = list_rollouts(comparison)
    examples = list_examples(comparison)
    charts = list_charts(comparison)
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    tables = {p: make_differences(comparison, p) for p in range(len(comparison.groups))}
    data = {
        "examples": examples,
        "rollouts": rollouts,
        "metrics": [_describe_metric(metric) for metric in COMPARED],
        "chosen": _choose_pair(comparison),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["zip"] = zip
    page = environment.get_template("template.html").render(
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704
        hashes={"style": hash_source(style), "script": hash_source(script)},
        data=embed(data),
        command=command,
        comparison=comparison,
        facts=list_facts(comparison),
        answer=find_answer(comparison),
        problems=[*comparison.problems, *unreadable],
        figures={name: [_draw(chart) for chart in found] for name, found in charts.items()},
        results=make_results(comparison),
        others=make_other_results(comparison),
        caption=describe_results(comparison),
        differences={p: table for p, table in tables.items() if table.rows},
        has_texts=bool(examples["runs"]),
        has_ppo=any(map(is_ppo, comparison.runs)),
        settings=find_differences(comparison.runs),
        versions=list_versions(comparison),
        notes={run.name: "; ".join(list_notes(run)) for run in comparison.runs},
    )
    # A name may hold half a surrogate pair, which cannot be encoded.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def embed(data: object) -> Markup:
    """Write data as JSON for a script element; numbers that are not finite become null.

    `<`, `>`, `&`, quotes and everything beyond ASCII are escaped, so that no text can end the
    element, open a comment or break a line.
    """
    return htmlsafe_json_dumps(_finite(data), dumps=json.dumps, separators=(",", ":"))


def hash_source(text: str) -> str:
    """Return the hash by which the page's policy admits this script or style and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def list_facts(comparison: Comparison) -> dict[str, str]:
    """Say what the page is about: data, model, number of dialogues, date and commit."""
    runs = comparison.runs
    ranked = [run for index in comparison.ranked for run in comparison.groups[index].runs] or runs
    configs = [flatten(run.config) for run in ranked]
    sizes = sorted(
        {one.n for run in ranked if (one := run.metrics.get(f"test/{HEADLINE}")) and one.n}
    )
    versions = list_versions(comparison)
    facts = {
        "data": _join([c.get("data.init_args.source", c.get("source")) for c in configs]),
        "model": _join([run.summary.get("backbone") for run in ranked]),
        "test dialogues": " to ".join(f"{n:,}" for n in dict.fromkeys(sizes[:1] + sizes[-1:])),
        "runs": str(len(runs)),
        "last run": max(run.date for run in runs).isoformat(),
        "commit": versions.get("alignsum", ""),
    }
    return {name: value for name, value in facts.items() if value}


def _join(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _short(version: object) -> str:
    """Shorten the 40 digits of a commit to ten."""
    found = str(version or "")
    return found[:10] + found[40:] if len(found) >= 40 else found


def list_versions(comparison: Comparison) -> dict[str, str]:
    """List the versions of packages in all runs."""
    found = [run.summary.get("versions") or {} for run in comparison.runs]
    names = dict.fromkeys(name for versions in found for name in versions)
    return {name: _join([_short(versions.get(name)) for versions in found]) for name in names}


def _draw(chart: Chart) -> Figure:
    return Figure(chart.title, inline_svg(to_svg(chart), chart.title))


def _describe_metric(metric: str) -> dict[str, Any]:
    """Tell the script how to display a metric of examples."""
    unit = unit_of(metric)
    label = ROUGE_LABELS.get(metric, metric)
    return {"key": metric, "label": label, "scale": unit.scale, "digits": unit.digits}


def _choose_pair(comparison: Comparison) -> dict[str, str | None]:
    """Choose the runs whose difference examples are sorted by at first."""
    best = comparison.groups[comparison.ranked[0]].first.name if comparison.ranked else None
    return {"own": best, "other": comparison.groups[comparison.baseline].first.name}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
