"""Assemble report.html from its template, style, scripts and data."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from reporting.answer import find_answer
from reporting.charts import to_svg
from reporting.comparison import COMPARED, HEADLINE, Comparison
from reporting.comparison_charts import list_charts
from reporting.numbers import ROUGE_LABELS, unit_of
from reporting.page.examples import list_examples
from reporting.page.inline_svg import inline_svg
from reporting.page.rollouts import list_rollouts
from reporting.seeds import find_differences, flatten
from reporting.table import (
    describe_results,
    make_differences,
    make_other_results,
    make_results,
)

_HERE = Path(__file__).parent
_SCRIPTS = ("core.js", "tables.js", "examples.js", "tokens.js")


def build_page(comparison: Comparison, command: str = "") -> str:
    """Build report.html, which loads nothing from elsewhere.

    Args:
        comparison: What to show.
        command: The command line that builds the page.
    """
    groups = comparison.groups
    rollouts, unreadable = list_rollouts(comparison)
    examples = list_examples(comparison)
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    metrics = [
        {"key": metric, "label": ROUGE_LABELS.get(metric, metric), **unit_of(metric)._asdict()}
        for metric in COMPARED
    ]
    # The runs whose difference examples are sorted by at first.
    best = groups[comparison.ranked[0]].first.name if comparison.ranked else None
    chosen = {"own": best, "other": groups[comparison.baseline].first.name}
    data = {"examples": examples, "rollouts": rollouts, "metrics": metrics, "chosen": chosen}
    tables = {place: make_differences(comparison, place) for place in range(len(groups))}
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["zip"] = zip
    page = environment.get_template("template.html").render(
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704
        hashes={"style": hash_source(style), "script": hash_source(script)},
        # Everything that could end the element, open a comment or break a line is escaped.
        data=htmlsafe_json_dumps(data, dumps=json.dumps, separators=(",", ":"), allow_nan=False),
        command=command,
        comparison=comparison,
        facts=list_facts(comparison),
        answer=find_answer(comparison),
        problems=[*comparison.problems, *unreadable],
        figures={
            name: [(chart.title, inline_svg(to_svg(chart), chart.title)) for chart in charts]
            for name, charts in list_charts(comparison).items()
        },
        results=make_results(comparison),
        others=make_other_results(comparison),
        caption=describe_results(comparison),
        differences={place: table for place, table in tables.items() if table.rows},
        has_texts=bool(examples["runs"]),
        has_rollouts=bool(rollouts),
        settings=find_differences(groups),
        versions=list_versions(comparison),
    )
    # A name may hold half a surrogate pair, which cannot be encoded.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def hash_source(text: str) -> str:
    """Return the hash by which the page's policy admits this script or style and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def list_facts(comparison: Comparison) -> dict[str, str]:
    """Say what the page is about: data, model, number of dialogues, date and commit."""
    runs = comparison.runs
    ranked = [run for index in comparison.ranked for run in comparison.groups[index].runs] or runs
    configs = [flatten(run.config) for run in ranked]
    found = [run.metrics.get(f"test/{HEADLINE}") for run in ranked]
    sizes = [one.n for one in found if one and one.n] or [0]
    seeds = [len(comparison.groups[index].runs) for index in comparison.ranked] or [1]
    facts = {
        "data": _join([
            c.get("data.dialogues") or c.get("data.source", c.get("source")) for c in configs
        ]),
        "model": _join([run.summary.get("backbone") for run in ranked]),
        "test dialogues": " to ".join(f"{n:,}" for n in sorted({min(sizes), max(sizes)}) if n),
        "seeds per method": " to ".join(map(str, sorted({min(seeds), max(seeds)}))),
        "last run": max(run.date for run in runs).isoformat(),
        "commit": list_versions(comparison).get("alignsum", ""),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value}


def list_versions(comparison: Comparison) -> dict[str, str]:
    """List the versions of packages in all runs; of a commit's 40 digits the first ten."""
    found = [run.summary.get("versions") or {} for run in comparison.runs]
    names = dict.fromkeys(name for versions in found for name in versions)
    return {
        name: _join([
            text[:10] + text[40:] if len(text := str(versions.get(name) or "")) >= 40 else text
            for versions in found
        ])
        for name in names
    }  # fmt: skip


def _join(values: list[Any]) -> str:
    """List different values, at most three."""
    found = list(dict.fromkeys(str(value) for value in values if value))
    return ", ".join(found if len(found) < 4 else [*found[:2], f"{len(found) - 2} more"])
