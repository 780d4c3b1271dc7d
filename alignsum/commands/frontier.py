"""The `frontier` command: weigh PPO's gains in toxicity against its losses in ROUGE-1."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import make_parser, require_runs
from common.exits import run, start_log

log = logging.getLogger("frontier")

HELP = """\
Weigh what tested PPO runs gain in toxicity against what they lose in ROUGE-1, over seeds.

Runs that differ only in their seed become one arm. The least toxic arm that loses no more ROUGE-1
than allowed is marked. Writes frontier.md, frontier.json (by arm), frontier.csv (by run) and
plots/frontier.png."""

EXAMPLE = """\
example:
  python -m alignsum frontier runs/sweep --max_rouge_loss 1 --out runs/frontier"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if no run can be used."""
    parser = make_parser("frontier", HELP, EXAMPLE)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path,
        help="run folder, or a folder that contains run folders, such as a sweep's",
    )  # fmt: skip
    parser.add_argument(
        "--out", default=Path("runs/frontier"), type=Path, metavar="DIR",
        help="folder to write to (default: runs/frontier)",
    )  # fmt: skip
    parser.add_argument(
        "--max_rouge_loss", default=1.0, type=float, metavar="X",
        help="accepted loss of ROUGE-1, times 100 (default: 1)",
    )  # fmt: skip
    options = parser.parse_args(args)
    start_log()
    return run(lambda: frontier(options.runs, options.out, options.max_rouge_loss), log)


def frontier(paths: Sequence[Path], out: Path, max_rouge_loss: float = 1.0) -> None:
    """Compare PPO runs and choose an arm.

    Raises:
        ValueError: No run can be used, or the limit is negative.
    """
    from reporting import frontier as work
    from reporting.markdown import terminal_table
    from reporting.runs import read_runs

    if not max_rouge_loss >= 0:
        raise ValueError(f"--max_rouge_loss must be 0 or more, got {max_rouge_loss}")
    found, problems = read_runs(work.find_run_folders(paths))
    usable = []
    for one in found:
        try:
            work.check_ppo_run(one)
            usable.append(one)
        except ValueError as error:
            problems.append(f"{one.path}: {error}")
    require_runs(usable, problems)
    limit = max_rouge_loss / 100
    arms = work.make_arms(usable, limit)
    chosen = work.choose(arms, limit)
    work.write_frontier(out, arms, chosen, limit, problems)
    from rich.console import Console

    rows = [[*row[:6], row[9]] for row in work.tabulate_arms(arms, chosen)]
    Console().print(terminal_table(rows, ("arm",), work.describe_arms(limit)))
