"""The `toxicity` command: report toxicity before and after training, example by example."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import make_parser, read_runs
from common.exits import run, start_log

log = logging.getLogger("toxicity")

HELP = """\
Report the toxicity of test summaries before and after training: mean, spread, worst cases.

Needs runs that were tested with a classifier (--toxicity.model). Writes toxicity.md (worst cases,
and the examples with the highest and lowest gains in reward) and toxicity_examples.csv (all
examples); `compare` draws the charts."""

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
    from reporting.answer import find_answer
    from reporting.comparison import Comparison
    from reporting.markdown import terminal_table
    from reporting.table import make_toxicity

    if top < 1:
        raise ValueError(f"--top must be at least 1, got {top}.")
    comparison = Comparison(*read_runs(paths, work.check_toxicity))
    work.write_toxicity(comparison, top, out)
    from rich.console import Console

    caption = "\n".join([work.CAPTION, *find_answer(comparison).cautions])
    Console().print(terminal_table(make_toxicity(comparison).texts, caption=caption))
