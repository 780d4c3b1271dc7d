"""The `toxicity` command: report toxicity before and after training, example by example."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import make_parser, require_runs
from common.exits import run, start_log

log = logging.getLogger("toxicity")

HELP = """\
Report the toxicity of test summaries before and after training: mean, spread, worst cases.

Needs runs that were tested with a classifier (--toxicity.model). Writes toxicity.md (worst cases,
and the examples with the highest and lowest gains in reward), toxicity.csv (all estimates),
toxicity_examples.csv (all examples) and plots/toxicity_by_run.png."""

EXAMPLE = """\
example:
  python -m alignsum toxicity runs/demo/ppo runs/demo/dpo --top 5 --out runs/toxicity"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if no run can be read or nothing can be written."""
    parser = make_parser("toxicity", HELP, EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "--out", default=Path("runs/report"), type=Path, metavar="DIR",
        help="folder to write to (default: runs/report)",
    )  # fmt: skip
    parser.add_argument(
        "--top", default=10, type=int, metavar="N", help="examples per table (default: 10)"
    )
    options = parser.parse_args(args)
    start_log()
    return run(lambda: toxicity(options.runs, options.out, options.top), log)


def toxicity(paths: Sequence[Path], out: Path, top: int = 10) -> None:
    """Report the toxicity of run folders.

    Raises:
        ValueError: No run can be read, or `top` is below 1.
    """
    from reporting import toxicity as work
    from reporting.markdown import terminal_table
    from reporting.runs import read_runs

    if top < 1:
        raise ValueError(f"--top must be at least 1, got {top}.")
    found, problems = read_runs(paths)
    reports = []
    for one in found:
        try:
            reports.append(work.ToxicityReport(one))
        except ValueError as error:
            problems.append(f"{one.path}: {error}")
    require_runs(reports, problems)
    work.write_toxicity(reports, problems, top, out)
    from rich.console import Console

    caption = "\n".join([work.CAPTION, *work.find_cautions(reports)])
    Console().print(terminal_table(work.tabulate_toxicity(reports), caption=caption))
