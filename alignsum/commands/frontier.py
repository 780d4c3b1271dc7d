"""The `frontier` command: weigh PPO's gains in toxicity against its losses in ROUGE-1."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import make_parser, read_runs
from common.exits import run, start_log

log = logging.getLogger("frontier")

HELP = """\
Weigh what tested PPO runs gain in toxicity against what they lose in ROUGE-1, over seeds.

Runs that differ only in their seed become one arm. The least toxic arm that loses no more ROUGE-1
than allowed is marked. Writes frontier.md, frontier.json and plots/frontier.png."""

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
    from reporting.comparison import Comparison
    from reporting.markdown import terminal_table

    if not max_rouge_loss >= 0:
        raise ValueError(f"--max_rouge_loss must be 0 or more, got {max_rouge_loss}")
    usable, problems = read_runs(work.find_run_folders(paths), work.check_ppo_run)
    found = work.Frontier(Comparison(usable, problems), max_rouge_loss / 100)
    found.write(out)
    from rich.console import Console

    rows = [[*row[:5], row[8]] for row in found.tabulate()]
    Console().print(terminal_table(rows, ("arm",), found.describe()))
