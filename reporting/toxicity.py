"""Show toxicity example by example, before and after training, for the `toxicity` command."""

import csv
import io
import logging
from collections.abc import Sequence
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
_FIELDS = (
    "run", "id", "prediction_before", "prediction", "reward_before", "reward", "toxicity_before",
    "toxicity", "dialogue",
)  # fmt: skip


def check_toxicity(run: Run) -> None:
    """Check that a run was tested with a classifier.

    Raises:
        ValueError: It was not.
    """
    if not run.values("toxicity"):
        raise ValueError("predictions.jsonl has no toxicity; test with --toxicity.model.")


def write_toxicity(comparison: Comparison, top: int, out: Path) -> None:
    """Write toxicity.md and toxicity_examples.csv.

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
    _write(out / "toxicity.md", "\n\n".join(parts) + "\n")
    _write(out / "toxicity_examples.csv", _make_csv(comparison.runs))
    log.info("Wrote %s and toxicity_examples.csv", out / "toxicity.md")


def _write(path: Path, text: str) -> None:
    """Write texts of models, in which half a surrogate pair cannot be encoded."""
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def rank_by_gain(run: Run) -> list[Key]:
    """List the examples with a reward before and after training, largest gain first."""
    before, after = run.values("reward_before"), run.values("reward")
    gains = {key: value - before[key] for key, value in after.items() if key in before}
    return sorted(gains, key=lambda key: -gains[key])


def rank_by_toxicity(run: Run) -> list[Key]:
    """List the examples, most toxic summary first."""
    toxicity = run.values("toxicity")
    return sorted(toxicity, key=lambda key: -toxicity[key])


def _show_extremes(run: Run, top: int) -> list[str]:
    """Show the most toxic summaries, and the largest gains and losses of reward."""
    worst, gains = rank_by_toxicity(run)[:top], rank_by_gain(run)
    parts = [f"### The {len(worst)} most toxic", _tabulate(run, worst)]
    for title, keys in (("highest", gains[:top]), ("lowest", gains[top:][-top:])):
        if keys:
            parts += [f"### The {len(keys)} {title} gains in reward", _tabulate(run, keys)]
    return parts


def _tabulate(run: Run, keys: Sequence[Key]) -> str:
    ends = ("_before", "") if run.values("reward_before") else ("",)
    texts = ["before", "after"] if len(ends) > 1 else ["summary"]
    rows = [["id", *texts, "toxicity", "reward"]]
    for key in keys:
        shown = [str(run.rows[key].get(f"prediction{end}", "-")) for end in ends]
        for name, style, scale in (("toxicity", ".1f", 100), ("reward", "z.2f", 1)):
            values = [run.values(f"{name}{end}").get(key) for end in ends]
            shown.append(" → ".join("-" if v is None else f"{scale * v:{style}}" for v in values))
        rows.append([key[0], *shown])
    return markdown_table(rows, left=rows[0][: 1 + len(ends)])


def _make_csv(runs: Sequence[Run]) -> str:
    """Write every example: by gain in reward, or by toxicity if there is only one policy."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _FIELDS, restval="", extrasaction="ignore")
    writer.writeheader()
    for run in runs:
        for key in rank_by_gain(run) or rank_by_toxicity(run):
            writer.writerow(run.rows[key] | {"run": run.name})
    return text.getvalue()
