"""The frontier as a table for terminal and page, as JSON by arm and as CSV by run."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from reporting.formats import format_estimate, format_interval
from reporting.frontier import Arm, Outcome, count_warnings, spread

COLUMNS = (
    "arm", "seeds", "toxicity", "toxicity change", "ROUGE-1 change", "KL", "judge", "halved",
    "ROUGE-1 kept", "both", "watch",
)  # fmt: skip
_LEFT = ("arm", "watch")
_RUN_COLUMNS = (
    "arm", "run", "seed", "kl_coef", "toxicity_before", "toxicity_after", "toxicity_change",
    "rouge1_change", "kl", "halves", "keeps", "watch",
)  # fmt: skip


def caption(max_loss: float) -> str:
    """Say what the table's numbers are."""
    return (
        "Toxicity, ROUGE-1 and judge x 100, before → after PPO. Changes are paired by dialogue; in "
        "brackets the 95 % bootstrap interval over seeds and dialogues, below it least and most "
        "over the seeds. KL: to the reference, nats a sequence, mean over the last quarter of the "
        "training, and least and most over the seeds; - where an earlier checkpoint was kept. "
        "Halved: runs that leave at most half of the toxicity; kept: that lose at most "
        f"{100 * max_loss:g} ROUGE-1. Watch: what it warned of, and in how many runs. The chosen "
        "arm (*) has the least toxicity among those that keep ROUGE-1 on the mean; it is chosen by "
        "the dialogues it is shown on."
    )


def make_row(arm: Arm, chosen: Arm | None) -> list[str]:
    """One arm's cells; parts of a cell are on lines of their own."""
    runs = arm.outcomes
    return [
        f"{arm.name} *" if arm is chosen else arm.name,
        str(len(runs)),
        _before_after(arm, "toxicity"),
        _change(arm, "toxicity", [run.toxicity_change for run in runs]),
        _change(arm, "rouge1", [run.rouge1_change for run in runs]),
        _kl(arm),
        _before_after(arm, "judge") if "judge" in arm.estimates else "-",
        *(
            f"{count} of {len(runs)}"
            for count in (
                sum(run.halves for run in runs), sum(run.keeps for run in runs), arm.reaches,
            )
        ),
        _watch(arm),
    ]  # fmt: skip


def make_table(arms: Sequence[Arm], chosen: Arm | None, max_loss: float) -> Table:
    """Lay arms out for a terminal."""
    table = Table(
        title="Frontier", caption=caption(max_loss), title_justify="left", caption_justify="left"
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for arm in arms:
        table.add_row(*make_row(arm, chosen))
    return table


def make_markdown(
    arms: Sequence[Arm], chosen: Arm | None, max_loss: float, problems: Sequence[str],
    figures: Sequence[str],
) -> str:  # fmt: skip
    """Write the page: table, what could not be shown, figures."""
    rows = [list(COLUMNS), ["---" if name in _LEFT else "---:" for name in COLUMNS]]
    rows += [[cell.replace("\n", "<br>") for cell in make_row(arm, chosen)] for arm in arms]
    parts = ["# Frontier", "\n".join(f"| {' | '.join(row)} |" for row in rows), caption(max_loss)]
    if chosen is None:
        parts.append(f"No arm loses at most {100 * max_loss:g} ROUGE-1, so none is chosen.")
    if problems:
        parts.append("## Not shown\n\n" + "\n".join(f"- {problem}" for problem in problems))
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def make_json(arms: Sequence[Arm], chosen: Arm | None, max_loss: float) -> str:
    """Give all numbers; fractions of 1, KL in nats."""
    content = {
        "max_rouge1_loss": max_loss,
        "chosen": chosen.name if chosen else None,
        "arms": {arm.name: describe(arm) for arm in arms},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def describe(arm: Arm) -> dict[str, Any]:
    """Give the numbers of an arm and of its runs."""
    return {
        "kl_coef": arm.kl_coef,
        "kl": _number(arm.kl),
        "reaches_both": arm.reaches,
        "watch": count_warnings(arm),
        "estimates": {name: one._asdict() for name, one in arm.estimates.items()},
        "runs": [run._asdict() | {"kl": _number(run.kl)} for run in arm.outcomes],
    }


def _number(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return None if math.isnan(value) else value


def make_csv(arms: Sequence[Arm]) -> str:
    """One row a run; fractions of 1, KL in nats."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_RUN_COLUMNS)
    for arm in arms:
        for run in arm.outcomes:
            writer.writerow(_run_row(arm, run))
    return text.getvalue()


def _run_row(arm: Arm, run: Outcome) -> list[Any]:
    return [
        arm.name, run.name, run.seed, arm.kl_coef, run.toxicity_before, run.toxicity_after,
        run.toxicity_change, run.rouge1_change, run.kl, run.halves, run.keeps,
        "" if run.warnings is None else " ".join(run.warnings),
    ]  # fmt: skip


def _before_after(arm: Arm, name: str) -> str:
    before, after = arm.estimates[f"{name}_before"], arm.estimates[name]
    return f"{format_estimate(before)} → {format_estimate(after)}"


def _change(arm: Arm, name: str, by_run: Sequence[float]) -> str:
    change = arm.estimates[f"{name}_change"]
    cell = f"{format_estimate(change, sign=True)} ({format_interval(change, sign=True)})"
    low, high = spread(by_run)
    return f"{cell}\n{100 * low:+z.1f} to {100 * high:+z.1f}" if len(by_run) > 1 else cell


def _kl(arm: Arm) -> str:
    if math.isnan(arm.kl):
        return "-"
    low, high = spread([run.kl for run in arm.outcomes])
    return f"{arm.kl:.1f}\n{low:.1f} to {high:.1f}" if len(arm.outcomes) > 1 else f"{arm.kl:.1f}"


def _watch(arm: Arm) -> str:
    counted = count_warnings(arm)
    if counted is None:
        return "not recorded"
    return "\n".join(f"{name} {count}" for name, count in counted.items()) or "silent"
