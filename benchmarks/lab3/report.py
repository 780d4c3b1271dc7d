"""Tables and pictures of lab 3: where each way starts, what it reaches, how many rows show it."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.run_folder import write_text
from metrics.intervals import bootstrap_crossed, difference_over_runs
from reporting.charts import Chart, Curve, Curves, Dot, Dots, Series, save_charts
from reporting.markdown import markdown_table
from reporting.numbers import RAW, format_both

Array = NDArray[np.float64]
Results = Mapping[str, dict[str, Any]]
Rows = list[list[str]]

LABELS = {
    "lab": "the lab's way",
    "careful": "TRL, with care",
    "ours_gae": "alignsum, GAE",
    "ours_rloo": "alignsum, RLOO",
    "forced": "the lab's way, reference forced",
}
"""Names of the arms for readers, in the order of the tables."""

CHECKED = ("lab", "forced", "careful", "ours_rloo")
"""Arms whose first steps are shown."""

LAB_ROWS = 11
"""Number of test rows on which the lab compares toxicity."""

PUBLISHED = (0.0348, 0.0314)
"""Mean and standard deviation of toxicity before PPO, over 11 rows, in a published run."""

SIZES = (5, 8, 11, 16, 25, 40, 60, 100, 160, 300)
"""Numbers of test rows, for detectable effects."""

LAB_EFFECT, OUR_EFFECT = "in the lab", "in the miniature, paired"
"""Curves of the smallest detectable change."""

LOGGED = {"kl": "objective/kl", "entropy": "objective/entropy", "ratio": "ppo/policy/ratio"}


def read_steps(folder: Path, way: str) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Read what a run logged at each step, and what the gate said before some of them.

    Args:
        folder: Of the run.
        way: How it was trained; see `Run`.
    """
    if way != "ours":
        result = json.loads((folder / "trl.json").read_text("utf-8"))
        return result["steps"], result["gates"]
    longest = max(folder.glob("step*"), key=lambda path: int(path.name.removeprefix("step")))
    with (longest / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[LOGGED["kl"]]]
    steps = [{short: float(row[name]) for short, name in LOGGED.items()} for row in rows]
    said = re.findall(r"The policy (passed the gate: .*)", (folder / "log.txt").read_text("utf-8"))
    return steps, {"0": said[0]}


# Statistics ---------------------------------------------------------------------------------------


class Verdicts(NamedTuple):
    """What somebody with few rows would conclude, over random choices of them.

    Attributes:
        low: 2.5 percentile of the improvement, (before - after) / before.
        high: 97.5 percentile.
        wrong: Share of choices with the other sign than all rows have.
        found: Share with the right sign in which a paired t-test gives p < 0.05.
    """

    low: float
    high: float
    wrong: float
    found: float


def improvement(before: Array, after: Array) -> float:
    """Compute the lab's figure from toxicities: (before - after) / before, of their means."""
    return float(1 - after.mean() / before.mean())


def judge(before: Array, after: Array, n: int, draws: int = 4000) -> Verdicts:
    """Compare toxicities on n random rows of a random run, again and again.

    Args:
        before: Toxicity before PPO, of each run and row [K, N].
        after: After it, in the same order.
        n: Number of rows in a draw, with replacement.
        draws: Number of draws, always the same ones.
    """
    rng = np.random.default_rng(0)
    runs = rng.integers(len(before), size=(draws, 1))
    rows = rng.integers(before.shape[1], size=(draws, n))
    one, two = before[runs, rows], after[runs, rows]
    relative, sign = 1 - two.mean(axis=1) / one.mean(axis=1), np.sign(improvement(before, after))
    gain = sign * (one - two)
    error = gain.std(axis=1, ddof=1) / np.sqrt(n)
    found = gain.mean(axis=1) > stats.t.ppf(0.975, n - 1) * error
    low, high = np.percentile(relative, [2.5, 97.5])
    return Verdicts(low, high, float((np.sign(relative) == -sign).mean()), float(found.mean()))


def detectable(mean: float, deviation: float, n: int, correlation: float = 0.0) -> float:
    """Compute the relative change that n rows show with 80 % power at p < 0.05, two-sided.

    The normal approximation: z_0.975 + z_0.8 standard errors of the difference of two means.

    Args:
        mean: Mean before.
        deviation: Standard deviation over rows, before and after.
        n: Number of rows, before and after.
        correlation: Between before and after on a row; 0 if they are not compared row by row.
    """
    error = deviation * np.sqrt(2 * (1 - correlation) / n)
    return float((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error / mean)


def values(results: Results, arm: str, metric: str, step: int) -> Array:
    """Return a metric of an arm after some steps, for each seed and row; step 0 is the start."""
    runs = (result for name, result in results.items() if name.startswith(f"{arm}-r16_qkvo-"))
    return np.array([run["measured"][str(step)][metric] for run in runs])


# Tables -------------------------------------------------------------------------------------------


def tabulate_start(results: Results) -> Rows:
    """Tabulate the KL at step 0 that is logged for two adapters, and the gate's findings."""
    rows = [["run", "KL, r = 16 on q, k, v, o", "KL, r = 32 on q, v", "the gate, r = 16"]]
    for arm in CHECKED:
        both = [results[f"{arm}-{start}-seed1"] for start in ("r16_qkvo", "r32_qv")]
        kl = [f"{abs(run['steps'][0]['kl']):.1f}" for run in both]
        rows.append([LABELS[arm], *kl, shorten(both[0]["gates"]["0"])])
    return rows


def shorten(finding: str) -> str:
    """Keep of what the gate said the figures that are too large."""
    found = re.findall(r"^  (.*?) +([\d.e+-]+)$", finding, re.MULTILINE)
    large = [f"{name}: {float(value):.2g}" for name, value in found if float(value) > 1e-3]
    return "; ".join(large) or "passed"


def tabulate_outcomes(results: Results, arms: Sequence[str], steps: Sequence[int]) -> Rows:
    """Tabulate what each arm changes since the start, with intervals over rows and seeds."""
    rows = [["run", "steps", "toxicity change", "ROUGE-1 change", "KL to the start", "KL logged"]]
    for arm in arms:
        for step in steps:
            changes = []
            for metric in ("toxicity", "rouge1"):
                before, after = (values(results, arm, metric, each) for each in (0, step))
                changes.append(difference_over_runs(before, after, paired=True))
            kl = bootstrap_crossed(values(results, arm, "kl", step).tolist())
            runs = (run for name, run in results.items() if name.startswith(f"{arm}-r16"))
            logged = np.mean([row["kl"] for run in runs for row in run["steps"][step - 10 : step]])
            cells = [*(format_both(each, sign=True) for each in changes), format_both(kl, RAW)]
            rows.append([LABELS[arm], str(step), *cells, f"{logged:z.1f}"])
    return rows


def tabulate_verdicts(results: Results, arms: Sequence[str], steps: Sequence[int]) -> Rows:
    """Tabulate what 11 rows say about each arm, and what all of them say."""
    rows = [["run", "steps", "all rows, all seeds", "11 rows, 95 %", "wrong sign", "p < 0.05"]]
    for arm in arms:
        for step in steps:
            before, after = (values(results, arm, "toxicity", each) for each in (0, step))
            few = judge(before, after, LAB_ROWS)
            cells = [f"{improvement(before, after):+.0%}", f"{few.low:+.0%} to {few.high:+.0%}"]
            shares = [f"{few.wrong:.0%}", f"{few.found:.0%}"]
            rows.append([LABELS[arm], str(step), *cells, *shares])
    return rows


def curves_of_power(results: Results, last: int) -> dict[str, list[float]]:
    """Compute the detectable effect at each size, in the lab and for our runs."""
    before, after = (values(results, "ours_rloo", "toxicity", step) for step in (0, last))
    r = float(np.corrcoef(before.ravel(), after.ravel())[0, 1])
    own = (float(before.mean()), float(before.std()))
    return {
        LAB_EFFECT: [detectable(*PUBLISHED, n) for n in SIZES],
        OUR_EFFECT: [detectable(*own, n, r) for n in SIZES],
        "alignsum's change is found": [judge(before, after, n).found for n in SIZES],
    }


def tabulate_power(power: Mapping[str, Sequence[float]]) -> Rows:
    """Tabulate detectable effects, and how often the effect of our runs is found."""
    rows = [[name, *(f"{each:.0%}" for each in line)] for name, line in power.items()]
    return [["test rows", *map(str, SIZES)], *rows]


# Files --------------------------------------------------------------------------------------------


def draw(root: Path, results: Results, arms: Sequence[str], last: int) -> None:
    """Draw the first ten steps, the outcomes, and the detectable effects."""
    places = {arm: place for place, arm in enumerate(("ours_rloo", "lab", "careful", "forced"))}
    charts: list[Chart] = []
    units = {"kl": "nats per summary", "entropy": "nats per token", "ratio": "mean"}
    for name, unit in units.items():
        curves = []
        for arm, place in places.items():
            steps = results[f"{arm}-r16_qkvo-seed1"]["steps"][:10]
            line = Series(range(len(steps)), [row[name] for row in steps])
            curves.append(Curve(LABELS[arm] if name == "kl" else "", line, place))
        charts.append(Curves(name.replace("kl", "KL"), unit, curves, x_label="step"))
    save_charts(root / "first_steps.png", "What the trainer logs: same LoRA, same rewards", charts)
    charts = []
    for metric, title in (("toxicity", "Toxicity"), ("rouge1", "ROUGE-1")):
        dots = []
        for arm in arms:
            before, after = (values(results, arm, metric, step) for step in (0, last))
            change = difference_over_runs(before, after, paired=True).scaled(100)
            seeds = (100 * (after - before).mean(axis=1)).tolist()
            dots.append(Dot(LABELS[arm], places.get(arm, 4), change, seeds))
        charts.append(Dots(f"{title}, x 100", "change since the start", dots))
    save_charts(root / "outcomes.png", f"After {last} steps: five seeds, 300 dialogues", charts)
    power = curves_of_power(results, last)
    lines = [
        Curve(name, Series(SIZES, [100 * each for each in power[name]]), place)
        for name, place in ((LAB_EFFECT, 1), (OUR_EFFECT, 0))
    ]
    title = "Smallest change with 80 % power, p < 0.05"
    charts = [Curves(title, "% of toxicity before", lines, True, "test rows")]
    lines = []
    for arm, place in list(places.items())[:3]:
        before, after = (values(results, arm, "toxicity", step) for step in (0, last))
        found = [100 * judge(before, after, n).found for n in SIZES]
        lines.append(Curve(LABELS[arm], Series(SIZES, found), place))
    title = f"How often the change after {last} steps is found"
    charts.append(Curves(title, "% of draws, p < 0.05", lines, True, "test rows"))
    save_charts(root / "power.png", "What n test rows can show; the lab has 11", charts)


def write_report(root: Path, folders: Sequence[Path]) -> None:
    """Write results.json, tables.md and the pictures from the results of all runs."""
    results = {path.name: json.loads((path / "result.json").read_text("utf-8")) for path in folders}
    done = {str(result["run"]["arm"]) for result in results.values()} - {"forced"}
    arms = [arm for arm in LABELS if arm in done]
    last = max(len(result["steps"]) for result in results.values())
    steps = sorted({10, last})
    tables = {
        "The start": tabulate_start(results),
        "Outcomes": tabulate_outcomes(results, arms, steps),
        f"{LAB_ROWS} rows": tabulate_verdicts(results, arms, steps),
        "Power": tabulate_power(curves_of_power(results, last)),
    }
    text = "\n\n".join(f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items())
    write_text(root / "tables.md", text + "\n")
    installed = json.loads((root / "trl" / "installed.json").read_text("utf-8"))
    found = {"trl_environment": installed, "tables": tables, "runs": results}
    write_text(root / "results.json", json.dumps(found, indent=1) + "\n")
    draw(root, results, arms, last)
