"""`report.py frontier`: what PPO buys and what it costs, over seeds."""

import logging
from pathlib import Path

from jsonargparse import ArgumentParser

from alignsum.commands.console import RUNS_HELP, wide_console
from reporting.frontier import choose, make_arms
from reporting.frontier_files import write_frontier
from reporting.frontier_runs import find_runs, group, read_ppo_runs
from reporting.frontier_tables import make_table

log = logging.getLogger("report")


def frontier(runs: list[str], out: str = "runs/frontier", max_rouge_loss: float = 1.0) -> int:
    """Show over seeds what tested PPO runs gained in toxicity and lost in ROUGE-1, and choose.

    Runs whose settings differ in nothing but the seed are one row; those that differ in the weight
    of the KL besides are joined in the plot. Writes frontier.md, frontier.json (by row),
    frontier.csv (by run), plots/seeds.png and plots/frontier.png to a folder, and marks the least
    toxic row that loses no more ROUGE-1 than is allowed. A folder that cannot be used is named, and
    the others are shown.

    Args:
        runs: Run folders, or folders that hold them, such as a sweep's.
        out: Folder to write to.
        max_rouge_loss: How much test ROUGE-1 may be lost, times 100.

    Returns:
        Exit code: 0, or 2 where no run could be used.
    """
    found, problems = read_ppo_runs(find_runs([Path(run) for run in runs]))
    for problem in problems:
        log.error("%s", problem)
    try:
        if not max_rouge_loss >= 0:
            raise ValueError(f"--max_rouge_loss must be 0 or more, got {max_rouge_loss}")
        if not found:
            raise ValueError("There is no tested PPO run to show.")
        arms = make_arms(group(found), max_rouge_loss / 100)
    except ValueError as error:
        log.error("%s", error)
        return 2
    chosen = choose(arms, max_rouge_loss / 100)
    wide_console().print(make_table(arms, chosen, max_rouge_loss / 100))
    write_frontier(Path(out), arms, chosen, max_rouge_loss / 100, problems)
    return 0


def add_arguments(command: ArgumentParser) -> None:
    """Add the options of :func:`frontier`."""
    command.add_argument("runs", nargs="+", metavar="RUN", help=RUNS_HELP)
    command.add_function_arguments(frontier, as_positional=False, skip={"runs"})
