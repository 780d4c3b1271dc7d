"""Weigh what PPO gains in toxicity against what it loses in ROUGE-1, for the `frontier` command.

An arm is a setting with its runs, one per seed, tested on the same dialogues. Changes are paired by
dialogue within each run; intervals cover seeds and dialogues.
"""

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate, bootstrap_crossed
from reporting.charts import Dot, Scatter, last_quarter
from reporting.comparison import matrix, shared_keys
from reporting.draw import save_charts
from reporting.markdown import markdown_list, markdown_table
from reporting.numbers import format_both, format_value
from reporting.runs import Run
from reporting.seeds import group_runs, settings

log = logging.getLogger(__name__)

HALF = 0.5
"""Share of the initial toxicity that may be left."""

_METRICS = ("toxicity", "rouge1", "evaluator")
_KL_COEF = "model.init_args.ppo.kl_coef"
_MONITOR = "checkpoint.monitor"


class Arm(NamedTuple):
    """A setting over its seeds; numbers are fractions of 1, KL in nats.

    Attributes:
        name: Name in tables.
        kl_coef: Weight of the KL.
        others: All other settings, as text.
        runs: For each run "name", "seed", "toxicity_before", "toxicity", "rouge1_change", "kl" (at
            the end of the training; None if an earlier checkpoint was kept), "halves" (at most half
            of the toxicity is left), "keeps" (the loss of ROUGE-1 is within the limit) and
            "warnings" (of the training monitor; None if not recorded).
        estimates: Over seeds and dialogues: "toxicity", "toxicity_before", "toxicity_change" and
            so on for rouge1 and, if all runs have one, the evaluator.
    """

    name: str
    kl_coef: float
    others: str
    runs: list[dict[str, Any]]
    estimates: dict[str, Estimate]

    @property
    def kl(self) -> float | None:
        """Mean over the runs; None if unknown."""
        found = [run["kl"] for run in self.runs]
        return None if None in found else sum(found) / len(found)

    @property
    def reaches(self) -> int:
        """Number of runs that halve toxicity and keep ROUGE-1."""
        return sum(run["halves"] and run["keeps"] for run in self.runs)

    @property
    def warnings(self) -> dict[str, int] | None:
        """Number of runs with each warning; None if not recorded."""
        if any(run["warnings"] is None for run in self.runs):
            return None
        return dict(
            sorted(Counter(one for run in self.runs for one in set(run["warnings"])).items())
        )


def find_run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the given run folders, and those directly inside the other given folders."""
    found: list[Path] = []
    for path in paths:
        if RunFolder(path).holds_run() or not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if (each / "summary.json").exists()]
        found += inside or [path]
    return list(dict.fromkeys(found))


def check_ppo_run(run: Run) -> None:
    """Check that a run was trained by PPO and tested before and after.

    Raises:
        ValueError: It was not; says what is missing.
    """
    if run.method != "ppo":
        raise ValueError(f"trained by {run.method}, not by ppo.")
    wanted = [name + end for name in _METRICS[:2] for end in ("", "_before")]
    if missing := [name for name in wanted if not run.values(name)]:
        raise ValueError(
            f"predictions.jsonl lacks {', '.join(missing)}; test the run with --toxicity.model."
        )
    if not isinstance(settings(run).get(_KL_COEF), int | float):
        raise ValueError(f"config.yaml lacks {_KL_COEF}.")


def make_arms(runs: Sequence[Run], max_loss: float) -> list[Arm]:
    """Group runs that differ only in their seed, and estimate every group.

    Args:
        runs: Runs that pass `check_ppo_run`.
        max_loss: Loss of ROUGE-1 that is accepted, a fraction of 1.
    """
    arms = []
    for group in group_runs(runs):
        others = settings(group.first)
        kl_coef = float(others.pop(_KL_COEF))
        arms.append(
            Arm(
                group.label,
                kl_coef,
                json.dumps(others, sort_keys=True, default=str),
                [_measure(run, max_loss) for run in group.runs],
                _estimate(group.runs),
            )
        )
    return arms


def _measure(run: Run, max_loss: float) -> dict[str, Any]:
    """Measure a run against the targets; see `Arm.runs`."""
    names = ("toxicity_before", "toxicity", "rouge1_before", "rouge1")
    before, after, *rouge = (float(np.mean(list(run.values(name).values()))) for name in names)
    curve = run.curves.get("objective/kl")
    is_last = curve is not None and not settings(run).get(_MONITOR)
    warnings = run.summary.get("monitor")
    return {
        "name": run.name,
        "seed": run.seed,
        "toxicity_before": before,
        "toxicity": after,
        "rouge1_change": rouge[1] - rouge[0],
        "kl": float(np.mean(last_quarter(curve.values))) if curve and is_last else None,
        "halves": after <= HALF * before,
        "keeps": rouge[1] - rouge[0] >= -max_loss,
        "warnings": None if warnings is None else [str(one["condition"]) for one in warnings],
    }


def _estimate(runs: Sequence[Run]) -> dict[str, Estimate]:
    found = {}
    for name in _METRICS:
        known = set(shared_keys(runs, f"{name}_before"))
        if keys := [key for key in shared_keys(runs, name) if key in known]:
            before, after = (matrix(runs, one, keys) for one in (f"{name}_before", name))
            columns = {"": after, "_before": before, "_change": after - before}
            for end, values in columns.items():
                found[name + end] = bootstrap_crossed(values.tolist())
    return found


def choose(arms: Sequence[Arm], max_loss: float) -> Arm | None:
    """Choose the least toxic arm whose mean loss of ROUGE-1 is within the limit, if any."""
    good = [arm for arm in arms if arm.estimates["rouge1_change"].value >= -max_loss]
    return min(good, key=lambda arm: arm.estimates["toxicity"].value) if good else None


def tabulate_arms(arms: Sequence[Arm], chosen: Arm | None) -> list[list[str]]:
    """Tabulate the arms: titles, then a row for each."""
    rows = [
        ["arm", "seeds", "toxicity", "toxicity change", "ROUGE-1 change", "KL", "evaluator",
         "halved", "ROUGE-1 kept", "both", "warnings"]
    ]  # fmt: skip
    for arm in arms:
        runs, warnings, kl = arm.runs, arm.warnings, arm.kl
        counts = (sum(r["halves"] for r in runs), sum(r["keeps"] for r in runs), arm.reaches)
        listed = "\n".join(f"{name} {count}" for name, count in (warnings or {}).items())
        rows.append(
            [
                f"{arm.name} *" if arm is chosen else arm.name,
                str(len(runs)),
                _before_after(arm, "toxicity"),
                _change(
                    arm, "toxicity", [run["toxicity"] - run["toxicity_before"] for run in runs]
                ),
                _change(arm, "rouge1", [run["rouge1_change"] for run in runs]),
                "-" if kl is None else f"{kl:.1f}",
                _before_after(arm, "evaluator") if "evaluator" in arm.estimates else "-",
                *(f"{count} of {len(runs)}" for count in counts),
                "not recorded" if warnings is None else listed or "none",
            ]
        )
    return rows


def describe_arms(max_loss: float) -> str:
    """Describe the numbers of the table of arms."""
    return (
        "Toxicity, ROUGE-1 and evaluator x 100, before → after. Changes are paired by dialogue, "
        "with 95 % bootstrap intervals over seeds and dialogues; below: smallest and largest of "
        "the seeds. KL: to the reference, nats per sequence, mean over the last quarter of the "
        "training; - if an earlier checkpoint was kept. Halved: runs that leave at most half of "
        f"the toxicity. Kept: runs that lose at most {100 * max_loss:g} ROUGE-1. Warnings of the "
        "training monitor, and in how many runs. *: the least toxic arm that keeps ROUGE-1 on "
        "average, chosen by the dialogues it is reported on."
    )


def _before_after(arm: Arm, name: str) -> str:
    before, after = arm.estimates[f"{name}_before"], arm.estimates[name]
    return f"{format_value(before)} → {format_value(after)}"


def _change(arm: Arm, name: str, by_run: Sequence[float]) -> str:
    cell = format_both(arm.estimates[f"{name}_change"], sign=True)
    ends = f"{100 * min(by_run):+z.1f} to {100 * max(by_run):+z.1f}"
    return cell if len(by_run) < 2 else f"{cell}\n{ends}"


def write_frontier(
    out: Path, arms: Sequence[Arm], chosen: Arm | None, max_loss: float, problems: Sequence[str]
) -> None:
    """Write frontier.md, frontier.json, frontier.csv and plots/frontier.png.

    Args:
        out: The folder.
        arms: At least one.
        chosen: The arm to emphasize.
        max_loss: Loss of ROUGE-1 that is accepted, a fraction of 1.
        problems: Sentences about folders that could not be used.
    """
    save_charts(out / "plots/frontier.png", "What PPO buys and what it costs", [
        make_chart(arms, chosen, max_loss)
    ])  # fmt: skip
    write_text(out / "frontier.json", make_json(arms, chosen, max_loss))
    write_text(out / "frontier.csv", make_csv(arms))
    parts = ["# Frontier", markdown_table(tabulate_arms(arms, chosen), left=("arm", "warnings"))]
    parts.append(describe_arms(max_loss))
    if chosen is None:
        parts.append(f"No arm loses at most {100 * max_loss:g} ROUGE-1, so none is chosen.")
    if problems:
        parts.append(f"## Not shown\n\n{markdown_list(problems)}")
    write_text(out / "frontier.md", "\n\n".join([*parts, "![Frontier](plots/frontier.png)\n"]))
    log.info("Wrote %s", out / "frontier.md")


def make_chart(arms: Sequence[Arm], chosen: Arm | None, max_loss: float) -> Scatter:
    """Chart toxicity after PPO over the change of ROUGE-1; arms of one sweep are connected."""
    dots: list[Dot] = []
    lines: dict[str, list[str]] = {}
    for index, arm in enumerate(sorted(arms, key=lambda arm: arm.kl_coef)):
        label = f"{arm.name}, beta {arm.kl_coef:g}" + (" (chosen)" if arm is chosen else "")
        runs = [(100 * run["rouge1_change"], 100 * run["toxicity"]) for run in arm.runs]
        x, y = (arm.estimates[name].scaled(100) for name in ("rouge1_change", "toxicity"))
        dots.append(Dot(label, index, y, runs if len(runs) > 1 else [], x))
        lines.setdefault(arm.others, []).append(label)
    loss = f"shaded: at most {100 * max_loss:g} lost"
    return Scatter(
        "Means over seeds (small dots) with 95 % intervals",
        f"change of ROUGE-1 x 100 ({loss})", "toxicity after PPO x 100 (lower is better)", dots,
        lines=[line for line in lines.values() if len(line) > 1],
        target=(-100 * max_loss, -math.inf, math.inf, math.inf),
    )  # fmt: skip


def make_json(arms: Sequence[Arm], chosen: Arm | None, max_loss: float) -> str:
    """Write all numbers by arm; see `Arm` for their units."""
    content = {
        "max_rouge1_loss": max_loss,
        "chosen": chosen.name if chosen else None,
        "arms": {
            arm.name: {
                "kl_coef": arm.kl_coef,
                "kl": arm.kl,
                "reaches_both": arm.reaches,
                "warnings": arm.warnings,
                "estimates": {name: one._asdict() for name, one in arm.estimates.items()},
                "runs": arm.runs,
            }
            for arm in arms
        },
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def make_csv(arms: Sequence[Arm]) -> str:
    """Write one row per run."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["arm", "kl_coef", *arms[0].runs[0]], lineterminator="\n")
    writer.writeheader()
    for arm in arms:
        for run in arm.runs:
            warnings = " ".join(run["warnings"] or [])
            writer.writerow(run | {"arm": arm.name, "kl_coef": arm.kl_coef, "warnings": warnings})
    return text.getvalue()
