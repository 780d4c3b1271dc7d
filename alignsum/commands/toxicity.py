"""`report.py toxicity`: what became of toxicity, example by example."""

import logging
from pathlib import Path

from jsonargparse import ArgumentParser

from alignsum.commands.console import RUNS_HELP, any_good, wide_console
from reporting.runs import read_each
from reporting.toxicity import read_toxicity
from reporting.toxicity_page import make_table, write_toxicity

log = logging.getLogger("report")


def toxicity(runs: list[str], out: str = "runs/report", top: int = 10) -> int:
    """Show toxicity before and after training: spread, worst cases, examples by gain in reward.

    Everything is computed from each run's predictions.jsonl, whose test had a classifier
    (--toxicity.model). A table here, and in a folder toxicity.md with the worst cases and both ends
    of the examples sorted by gain in reward, toxicity.csv with all estimates,
    toxicity_examples.csv with all examples, and a plot. A run without a text of before training has
    its worst cases only. A folder that is missing or broken is named, and the others are shown.

    Args:
        runs: Run folders, in the order of the table.
        out: Folder to write to.
        top: Examples in each table of the page.

    Returns:
        Exit code: 0, or 2 where no run could be read or nothing be written.
    """
    if top < 1:
        log.error("--top must be at least 1, got %d.", top)
        return 2
    good, problems = read_each([Path(run) for run in runs], read_toxicity)
    if not any_good(good, problems, len(runs)):
        return 2
    try:
        write_toxicity(good, problems, top, Path(out))
    except OSError as error:
        log.error("cannot write to --out %s: %s", out, error)
        return 2
    wide_console().print(make_table(good))
    return 0


def add_arguments(command: ArgumentParser) -> None:
    """Add the options of :func:`toxicity`."""
    command.add_argument("runs", nargs="+", metavar="RUN", help=RUNS_HELP)
    command.add_function_arguments(toxicity, as_positional=False, skip={"runs"})
