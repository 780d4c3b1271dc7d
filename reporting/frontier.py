"""Weigh what PPO gains in toxicity against what it loses in ROUGE-1, for the `frontier` command.

An arm is a setting with its runs, one per seed: a group of a `Comparison`. Changes are paired by
dialogue within each run; intervals cover seeds and dialogues.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate
from reporting.charts import Dot, Scatter
from reporting.comparison import Comparison
from reporting.draw import save_charts
from reporting.markdown import markdown_list, markdown_table
from reporting.runs import Run
from reporting.seeds import settings
from reporting.table import make_change_cell

log = logging.getLogger(__name__)

HALF = 0.5
"""Share of the initial toxicity that may be left."""

_MONITOR = "checkpoint.monitor"


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
    wanted = [name + end for name in ("toxicity", "rouge1") for end in ("", "_before")]
    lacking = [n for n in wanted if not run.values(n) or f"test/{n}" not in run.metrics]
    if lacking:
        raise ValueError(f"its test lacks {', '.join(lacking)}; repeat it with --toxicity.model.")


class Frontier:
    """The arms of a comparison and the choice among them.

    Args:
        comparison: Runs that pass `check_ppo_run`.
        max_loss: Loss of ROUGE-1 that is accepted, a fraction of 1.
    """

    def __init__(self, comparison: Comparison, max_loss: float) -> None:
        self.comparison = comparison
        self.max_loss = max_loss

    @property
    def chosen(self) -> int | None:
        """The least toxic arm whose mean loss of ROUGE-1 is within the limit, if any."""
        arms = range(len(self.comparison.groups))
        good = [
            arm
            for arm in arms
            if self._estimate(arm, "rouge1", change=True).value >= -self.max_loss
        ]
        return min(good, key=lambda arm: self._estimate(arm, "toxicity").value, default=None)

    def _estimate(self, arm: int, metric: str, change: bool = False) -> Estimate:
        find = self.comparison.change if change else self.comparison.estimate
        found = find(arm, metric)
        assert found is not None, "see check_ppo_run"  # noqa: S101
        return found

    def measure_runs(self, arm: int) -> list[dict[str, Any]]:
        """Measure each run of an arm against the targets; fractions of 1.

        Returns:
            "name", "seed", "toxicity_before", "toxicity", "rouge1_change", "halves" (at most half
            of the toxicity is left), "keeps" (the loss of ROUGE-1 is within the limit) and
            "warnings" (of the training monitor; None if not recorded).
        """
        measured = []
        for run in self.comparison.groups[arm].runs:
            names = ("toxicity_before", "toxicity", "rouge1_before", "rouge1")
            before, after, *rouge = (run.metrics[f"test/{name}"].value for name in names)
            warnings = run.summary.get("monitor")
            measured.append(
                {
                    "name": run.name,
                    "seed": run.seed,
                    "toxicity_before": before,
                    "toxicity": after,
                    "rouge1_change": rouge[1] - rouge[0],
                    "halves": after <= HALF * before,
                    "keeps": rouge[1] - rouge[0] >= -self.max_loss,
                    "warnings": None if warnings is None else [w["condition"] for w in warnings],
                }
            )
        return measured

    def kl(self, arm: int) -> float | None:
        """Return the KL at the end of the training; None if an earlier checkpoint was kept."""
        found = self.comparison.kl(arm)
        is_last = not any(settings(run).get(_MONITOR) for run in self.comparison.groups[arm].runs)
        return found.value if found and is_last else None

    def tabulate(self) -> list[list[str]]:
        """Tabulate the arms: titles, then a row for each."""
        rows = [
            ["arm", "seeds", "toxicity", "ROUGE-1", "KL", "evaluator", "halved", "kept", "both",
             "warnings"]
        ]  # fmt: skip
        for arm, label in enumerate(self.comparison.labels):
            runs, kl = self.measure_runs(arm), self.kl(arm)
            met = [
                sum(run["halves"] for run in runs),
                sum(run["keeps"] for run in runs),
                sum(run["halves"] and run["keeps"] for run in runs),
            ]
            toxicity = [run["toxicity"] - run["toxicity_before"] for run in runs]
            rows.append(
                [
                    f"{label} *" if arm == self.chosen else label,
                    str(len(runs)),
                    self._cell(arm, "toxicity", toxicity),
                    self._cell(arm, "rouge1", [run["rouge1_change"] for run in runs]),
                    "-" if kl is None else f"{kl:.1f}",
                    make_change_cell(self.comparison, arm, "evaluator").text,
                    *(f"{count} of {len(runs)}" for count in met),
                    _count_warnings(runs),
                ]
            )
        return rows

    def _cell(self, arm: int, metric: str, by_run: Sequence[float]) -> str:
        text = make_change_cell(self.comparison, arm, metric).lines
        ends = f"{100 * min(by_run):+z.1f} to {100 * max(by_run):+z.1f}"
        return f"{text}\nseeds: {ends}" if len(by_run) > 1 else text

    def describe(self) -> str:
        """Describe the numbers of the table."""
        return (
            "Toxicity, ROUGE-1 and evaluator x 100, before → after; below: the change, paired by "
            "dialogue, with 95 % bootstrap intervals over seeds and dialogues, and the smallest "
            "and largest of the seeds. KL: to the reference, nats per sequence, mean over the last "
            "quarter of the training; - if an earlier checkpoint was kept. Halved: runs that leave "
            "at most half of the toxicity. Kept: runs that lose at most "
            f"{100 * self.max_loss:g} ROUGE-1. Warnings of the training monitor, and in how many "
            "runs. *: the least toxic arm that keeps ROUGE-1 on average, chosen by the dialogues "
            "it is reported on."
        )

    def make_chart(self) -> Scatter:
        """Chart toxicity after PPO over the change of ROUGE-1."""
        dots: list[Dot] = []
        for arm, label in enumerate(self.comparison.labels):
            runs = [(100 * r["rouge1_change"], 100 * r["toxicity"]) for r in self.measure_runs(arm)]
            x = self._estimate(arm, "rouge1", change=True).scaled(100)
            y = self._estimate(arm, "toxicity").scaled(100)
            name = f"{label} (chosen)" if arm == self.chosen else label
            dots.append(Dot(name, arm, y, runs if len(runs) > 1 else [], x))
        return Scatter(
            "Means over seeds (small dots) with 95 % intervals",
            f"change of ROUGE-1 x 100 (dashed: {100 * self.max_loss:g} lost)",
            "toxicity after PPO x 100 (lower is better)", dots, limit=-100 * self.max_loss,
        )  # fmt: skip

    def make_json(self) -> str:
        """Write all numbers by arm; see `measure_runs` for their units."""
        arms = {}
        for arm, label in enumerate(self.comparison.labels):
            estimates = {}
            for metric in ("toxicity", "rouge1", "evaluator"):
                estimates[f"{metric}_before"] = self.comparison.estimate(arm, f"{metric}_before")
                estimates[metric] = self.comparison.estimate(arm, metric)
                estimates[f"{metric}_change"] = self.comparison.change(arm, metric)
            known = {name: one._asdict() for name, one in estimates.items() if one is not None}
            arms[label] = {"kl": self.kl(arm), "estimates": known, "runs": self.measure_runs(arm)}
        chosen = None if self.chosen is None else self.comparison.labels[self.chosen]
        content = {"max_rouge1_loss": self.max_loss, "chosen": chosen, "arms": arms}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def write(self, out: Path) -> None:
        """Write frontier.md, frontier.json and plots/frontier.png to a folder."""
        chart = self.make_chart()
        save_charts(out / "plots/frontier.png", "What PPO buys and what it costs", [chart])
        write_text(out / "frontier.json", self.make_json())
        parts = ["# Frontier", markdown_table(self.tabulate(), left=("arm", "warnings"))]
        parts.append(self.describe())
        if self.chosen is None:
            parts.append(f"No arm loses at most {100 * self.max_loss:g} ROUGE-1: none is chosen.")
        if self.comparison.problems:
            parts.append(f"## Not shown\n\n{markdown_list(self.comparison.problems)}")
        write_text(out / "frontier.md", "\n\n".join([*parts, "![Frontier](plots/frontier.png)\n"]))
        log.info("Wrote %s", out / "frontier.md")


def _count_warnings(runs: Sequence[dict[str, Any]]) -> str:
    if any(run["warnings"] is None for run in runs):
        return "not recorded"
    counts = Counter(str(one) for run in runs for one in set(run["warnings"]))
    return "\n".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
