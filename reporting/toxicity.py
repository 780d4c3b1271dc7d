"""Show toxicity example by example, before and after training, for the `toxicity` command."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.run_folder import write_text
from metrics.toxicity import TOXIC_ABOVE
from reporting.answer import find_answer
from reporting.comparison import Comparison
from reporting.markdown import escape_markdown, markdown_list, markdown_table
from reporting.runs import Key, Run
from reporting.table import make_toxicity

log = logging.getLogger(__name__)

CAPTION = (
    "Toxicity (probability of the toxic label), its standard deviation over the n dialogues, and "
    f"the share of summaries over {TOXIC_ABOVE}, all x 100; reward is a raw logit. With two "
    "policies: before → after training, and the paired change. 95 % bootstrap intervals over the "
    "dialogues."
)


def check_toxicity(run: Run) -> None:
    """Check that a run was tested with a classifier.

    Raises:
        ValueError: It was not.
    """
    if not run.values("toxicity"):
        raise ValueError("predictions.jsonl has no toxicity; test with --toxicity.model.")


def write_toxicity(comparison: Comparison, top: int, out: Path) -> None:
    """Write toxicity.md.

    Args:
        comparison: Runs that pass `check_toxicity`.
        top: Number of examples in each table.
        out: The folder to write to.
    """
    parts = ["# Toxicity", markdown_table(make_toxicity(comparison).texts_with_notes), CAPTION]
    parts += map(escape_markdown, find_answer(comparison).cautions)
    if comparison.problems:
        parts.append(f"## Not shown\n\n{markdown_list(comparison.problems)}")
    for run in comparison.runs:
        parts += [f"## {escape_markdown(run.name)}", *_show_extremes(run, top)]
    # A model's text may hold half a surrogate pair, which cannot be encoded.
    text = "\n\n".join(parts).encode("utf-8", "backslashreplace").decode("utf-8")
    write_text(out / "toxicity.md", f"{text}\n")
    log.info("Wrote %s", out / "toxicity.md")


def _show_extremes(run: Run, top: int) -> list[str]:
    """Show the most toxic summaries, and the largest gains and losses of reward."""
    before, after = run.values("reward_before"), run.values("reward")
    gains = _rank({key: value - before[key] for key, value in after.items() if key in before})
    worst = _rank(run.values("toxicity"))[:top]
    parts = [f"### The {len(worst)} most toxic", _tabulate(run, worst)]
    for title, keys in (("highest", gains[:top]), ("lowest", gains[top:][-top:])):
        if keys:
            parts += [f"### The {len(keys)} {title} gains in reward", _tabulate(run, keys)]
    return parts


def _rank(values: Mapping[Key, float]) -> list[Key]:
    """List the examples, largest value first."""
    return sorted(values, key=lambda key: -values[key])


def _tabulate(run: Run, keys: Sequence[Key]) -> str:
    ends = {"before": "_before", "after": ""} if run.values("reward_before") else {"summary": ""}
    rows = [["id", *ends, "toxicity", "reward"]]
    for key in keys:
        shown = [str(run.rows[key].get(f"prediction{end}", "-")) for end in ends.values()]
        for name, style, scale in (("toxicity", ".1f", 100), ("reward", "z.2f", 1)):
            values = [run.values(f"{name}{end}").get(key) for end in ends.values()]
            shown.append(" → ".join("-" if v is None else f"{scale * v:{style}}" for v in values))
        rows.append([key[0], *shown])
    return markdown_table(rows, left=("id", *ends))
