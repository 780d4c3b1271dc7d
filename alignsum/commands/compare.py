"""`report.py compare`: runs as one page, tables and plots."""

import logging
import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from alignsum.commands.console import RUNS_HELP, any_good, wide_console
from common.versions import show_command
from reporting.compare import find_output_problem, write_comparison
from reporting.comparison import Comparison
from reporting.runs import read_runs
from reporting.tables import make_table
from reporting.verdict import make_verdict

log = logging.getLogger("report")


def compare(
    runs: list[str],
    out: str = "runs/report",
    baseline: str | None = None,
    price_per_hour: float | None = None,
) -> int:
    """Compare runs: a table here, and in a folder report.html, Markdown, CSV and plots.

    report.html is one file that needs no network: which method, and how sure that is; every number
    with its interval; curves; the summaries side by side; PPO's tokens. Runs that differ in their
    seed alone are put together. A run's values and intervals are those of its summary.json. A
    folder or a file that is missing or broken is named, and the rest is shown. `runs/demo/*` may be
    given again: the folder of the comparison itself is passed over.

    Args:
        runs: Run folders, in the order of the table.
        out: Folder to write to.
        baseline: The run that the others are held against in paired differences, by its name or
            folder. Default: the best that needed no training, else the first.
        price_per_hour: What an hour of the machine costs, in dollars, for a column of costs.

    Returns:
        Exit code: 0, or 2 where no run could be read or a setting is wrong.
    """
    if problem := find_output_problem(Path(out), price_per_hour):
        log.error("%s", problem)
        return 2
    paths = [Path(run) for run in runs if Path(run).resolve() != Path(out).resolve()]
    good, problems = read_runs(paths)
    if not any_good(good, problems, len(paths)):
        return 2
    try:
        comparison = Comparison(good, problems, baseline, price_per_hour)
    except ValueError as error:
        log.error("%s", error)
        return 2
    console = wide_console()
    console.print(make_table(comparison))
    for line in make_verdict(comparison).sentences:
        console.print(line, markup=False, highlight=False)
    write_comparison(comparison, Path(out), show_command(["python", *sys.argv]))
    return 0


def add_arguments(command: ArgumentParser) -> None:
    """Add the options of :func:`compare`."""
    command.add_argument("runs", nargs="+", metavar="RUN", help=RUNS_HELP)
    command.add_function_arguments(compare, as_positional=False, skip={"runs"})
