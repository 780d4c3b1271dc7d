"""The `toxicity` command: report toxicity before and after training, example by example."""

from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import read_runs, run_command


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if no run can be read or nothing can be written."""
    return run_command("toxicity", toxicity, args, "run folders")


def toxicity(runs: list[str], out: str = "runs/report", top: int = 10) -> None:
    """Report the toxicity of test summaries before and after training: mean, spread, worst cases.

    Needs runs that were tested with a classifier (--toxicity.model). Writes toxicity.md with the
    most toxic summaries and the highest and lowest gains in reward; `compare` draws the charts.

      python -m alignsum toxicity runs/demo/ppo runs/demo/dpo --top 5 --out runs/toxicity

    Args:
        runs: Run folders.
        out: Folder to write to.
        top: Examples per table.

    Raises:
        ValueError: No run can be read, or `top` is below 1.
    """
    from rich.console import Console

    from reporting import toxicity as work
    from reporting.answer import find_answer
    from reporting.comparison import Comparison
    from reporting.markdown import terminal_table
    from reporting.table import make_toxicity

    if top < 1:
        raise ValueError(f"--top must be at least 1, got {top}.")
    comparison = Comparison(*read_runs(list(map(Path, runs)), work.check_toxicity))
    work.write_toxicity(comparison, top, Path(out))
    caption = "\n".join([work.CAPTION, *find_answer(comparison).cautions])
    Console().print(terminal_table(make_toxicity(comparison).texts, caption=caption))
