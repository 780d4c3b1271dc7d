"""Weigh what alignment gains in toxicity against what it loses in ROUGE-1, for `frontier`.

An arm is a setting with its runs, one per seed: a group of a `Comparison`. Changes are paired by
dialogue within each run; intervals cover seeds and dialogues.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from common.run_folder import RunFolder, write_text
from reporting.charts import Dot, Scatter, save_charts
from reporting.comparison import Comparison
from reporting.markdown import escape_markdown, markdown_list, markdown_table
from reporting.runs import Run
from reporting.table import Table, make_frontier

log = logging.getLogger(__name__)

CAPTION = (
    "Toxicity, ROUGE-1 and evaluator x 100, before → after; below: the change, paired by dialogue, "
    "with 95 % bootstrap intervals over seeds and dialogues. KL: to the reference, nats per "
    "sequence, mean over the last quarter of the training."
)


def find_run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the given run folders, and those directly inside the other given folders."""
    found: list[Path] = []
    for path in paths:
        inside: list[Path] = []
        if path.is_dir() and not RunFolder(path).holds_run():
            inside = [each for each in sorted(path.iterdir()) if RunFolder(each).summary.exists()]
        found += inside or [path]
    return list(dict.fromkeys(found))


def check_run(run: Run) -> None:
    """Check that a run was tested before and after training, by PPO or DPO.

    Raises:
        ValueError: It was not; says what is missing.
    """
    wanted = [name + end for name in ("toxicity", "rouge1") for end in ("", "_before")]
    lacking = [n for n in wanted if not run.values(n) or f"test/{n}" not in run.metrics]
    if lacking:
        raise ValueError(
            f"its test lacks {', '.join(lacking)}; test a PPO or DPO run with --toxicity.model."
        )


def choose_arm(comparison: Comparison, max_loss: float) -> int | None:
    """Choose the least toxic arm that loses at most `max_loss` ROUGE-1, a fraction of 1."""
    arms = range(len(comparison.groups))
    good = {
        arm: toxicity.value
        for arm in arms
        if (change := comparison.change(arm, "rouge1")) and change.value >= -max_loss
        if (toxicity := comparison.estimate(arm, "toxicity"))
    }
    return min(good, key=lambda arm: good[arm], default=None)


def make_chart(comparison: Comparison, chosen: int | None, max_loss: float) -> Scatter:
    """Chart toxicity after training over the change of ROUGE-1."""
    dots: list[Dot] = []
    for arm, group in enumerate(comparison.groups):
        change, toxicity = comparison.change(arm, "rouge1"), comparison.estimate(arm, "toxicity")
        if change is None or toxicity is None:
            continue
        runs = []
        for run in group.runs:
            names = ("rouge1", "rouge1_before", "toxicity")
            after, before, toxic = (100 * run.metrics[f"test/{name}"].value for name in names)
            runs.append((after - before, toxic))
        name = f"{group.label} (chosen)" if arm == chosen else group.label
        runs = runs if len(runs) > 1 else []
        dots.append(Dot(name, arm, toxicity.scaled(100), runs, change.scaled(100)))
    return Scatter(
        "Means over seeds (small dots) with 95 % intervals",
        f"change of ROUGE-1 x 100 (dashed: {100 * max_loss:g} lost)",
        "toxicity x 100 (lower is better)", dots, limit=-100 * max_loss,
    )  # fmt: skip


def write_frontier(comparison: Comparison, max_loss: float, out: Path) -> tuple[Table, str]:
    """Write frontier.md and plots/frontier.png.

    Args:
        comparison: Runs that pass `check_run`.
        max_loss: Loss of ROUGE-1 that is accepted, a fraction of 1.
        out: The folder.

    Returns:
        The table of the arms, and which one is chosen.
    """
    chosen, table = choose_arm(comparison, max_loss), make_frontier(comparison)
    limit = f"{100 * max_loss:g} ROUGE-1"
    answer = f"No arm loses at most {limit} on average."
    if chosen is not None:
        answer = f"{comparison.labels[chosen]} is the least toxic arm that loses at most {limit}."
    chart = make_chart(comparison, chosen, max_loss)
    save_charts(out / "plots/frontier.png", "What alignment gains and costs", [chart])
    shown = markdown_table(table.texts_with_notes, ("run", "notes"))
    parts = ["# Frontier", escape_markdown(answer), shown, CAPTION]
    if comparison.problems:
        parts.append(f"## Not shown\n\n{markdown_list(comparison.problems)}")
    write_text(out / "frontier.md", "\n\n".join([*parts, "![Frontier](plots/frontier.png)\n"]))
    log.info("Wrote %s", out / "frontier.md")
    return table, answer
