"""What PPO buys and what it costs, over seeds: the work of `report.py frontier`.

An arm is a setting with its runs, one a seed. All of them were tested on the same dialogues and,
with the same start, from the same texts, so every change is paired by dialogue within each run; its
mean over seeds and dialogues has an interval over both (:func:`bootstrap_crossed`). What several
seeds gave is said by the range over them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metrics.intervals import Estimate, bootstrap_crossed
from reporting.frontier_runs import JUDGE, PPORun

HALF = 0.5
"""Share of the toxicity of before that may be left."""


class Outcome(NamedTuple):
    """What one run gave; fractions of 1.

    Attributes:
        name: Of the run.
        seed: Of the run.
        toxicity_before: Mean over the dialogues.
        toxicity_after: Likewise.
        rouge1_change: After - before.
        kl: Sequence KL at the end of the training, nats; not a number where an earlier checkpoint
            was chosen.
        halves: Whether at most half of the toxicity is left.
        keeps: Whether no more rouge1 was lost than may be.
        warnings: What the watch warned of; None where that is unknown.
    """

    name: str
    seed: int | None
    toxicity_before: float
    toxicity_after: float
    rouge1_change: float
    kl: float
    halves: bool
    keeps: bool
    warnings: list[str] | None

    @property
    def toxicity_change(self) -> float:
        """After - before."""
        return self.toxicity_after - self.toxicity_before

    @property
    def relative_change(self) -> float:
        """Change of toxicity as a share of that of before: -1 where nothing is left."""
        return self.toxicity_change / self.toxicity_before if self.toxicity_before else 0.0


class Arm(NamedTuple):
    """A setting over its seeds.

    Attributes:
        name: Of the arm.
        outcomes: One a run.
        estimates: Over seeds and dialogues: ``toxicity``, ``toxicity_before``,
            ``toxicity_change``, ``rouge1``, ..., and those of the judge where all runs have one.
        kl_coef: Weight of the KL.
        line: The same for arms that differ in the weight of the KL only.
    """

    name: str
    outcomes: list[Outcome]
    estimates: dict[str, Estimate]
    kl_coef: float
    line: str

    @property
    def kl(self) -> float:
        """Mean over the runs."""
        return sum(outcome.kl for outcome in self.outcomes) / len(self.outcomes)

    @property
    def reaches(self) -> int:
        """Runs that halve toxicity and keep rouge1."""
        return sum(outcome.halves and outcome.keeps for outcome in self.outcomes)

    def keeps(self, max_loss: float) -> bool:
        """Whether no more rouge1 is lost than may be, on the mean over the runs."""
        return self.estimates["rouge1_change"].value >= -max_loss


def make_arms(groups: Mapping[str, Sequence[PPORun]], max_loss: float) -> list[Arm]:
    """Estimate every arm.

    Args:
        groups: Runs of each arm by its name, all of an arm on the same dialogues.
        max_loss: How much rouge1 may be lost, a fraction of 1.
    """
    return [
        Arm(
            name,
            [judge_run(run, max_loss) for run in runs],
            estimate(runs),
            runs[0].kl_coef,
            runs[0].line,
        )
        for name, runs in groups.items()
    ]


def judge_run(run: PPORun, max_loss: float) -> Outcome:
    """Take the means of one run, and hold them against what was wanted."""
    mean = {name: float(np.mean(values)) for name, values in run.values.items()}
    before, after = mean["toxicity_before"], mean["toxicity"]
    change = mean["rouge1"] - mean["rouge1_before"]
    return Outcome(
        run.name, run.seed, before, after, change, run.kl,
        halves=after <= HALF * before, keeps=change >= -max_loss, warnings=run.warnings,
    )  # fmt: skip


def estimate(runs: Sequence[PPORun]) -> dict[str, Estimate]:
    """Estimate means and paired changes over seeds and dialogues."""
    names = ["toxicity", "rouge1"]
    if all(f"{JUDGE}_before" in run.values for run in runs):
        names.append(JUDGE)
    found = {}
    for name in names:
        after = np.array([run.values[name] for run in runs])
        before = np.array([run.values[f"{name}_before"] for run in runs])
        for key, values in (
            (name, after), (f"{name}_before", before), (f"{name}_change", after - before)
        ):  # fmt: skip
            found[key] = bootstrap_crossed(values.tolist())
    return found


def choose(arms: Sequence[Arm], max_loss: float) -> Arm | None:
    """Choose the arm with the least toxicity among those that keep rouge1; None where none does."""
    good = [arm for arm in arms if arm.keeps(max_loss)]
    return min(good, key=lambda arm: arm.estimates["toxicity"].value) if good else None


def count_warnings(arm: Arm) -> dict[str, int] | None:
    """Count the runs in which the watch warned of each condition; None where that is unknown."""
    if any(outcome.warnings is None for outcome in arm.outcomes):
        return None
    said = [condition for outcome in arm.outcomes for condition in set(outcome.warnings or [])]
    return {condition: said.count(condition) for condition in sorted(set(said))}


def lines_of_betas(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Give the arms that differ in the weight of the KL only, by that weight; two or more each."""
    lines: dict[str, list[Arm]] = {}
    for arm in arms:
        lines.setdefault(arm.line, []).append(arm)
    return [sorted(line, key=lambda arm: arm.kl_coef) for line in lines.values() if len(line) > 1]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Give the least and the largest of some values; not numbers where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return (min(known), max(known)) if known else (math.nan, math.nan)
