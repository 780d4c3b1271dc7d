"""The `compare` command: show runs side by side, as a page, tables and plots."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import make_parser, read_runs
from common.exits import run, start_log

log = logging.getLogger("compare")

HELP = """\
Compare runs: which method is best, how certain that is, and what it costs.

Prints a table and writes report.html (one file that works offline: answer, tables, paired
differences, curves, example browser, token view), comparison.md, comparison.csv and plots/*.png.
Runs that differ only in their seed become one row. A broken run is named, the others are shown."""

EXAMPLE = """\
example:
  python -m alignsum compare runs/demo/* --out runs/demo/report
  python -m alignsum compare runs/lora runs/ppo --baseline lora"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if no run can be read or a setting is wrong."""
    parser = make_parser("compare", HELP, EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "--out", default=Path("runs/report"), type=Path, metavar="DIR",
        help="folder to write to (default: runs/report)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", metavar="RUN",
        help="run that the others are compared with (default: the best one without training)",
    )  # fmt: skip
    options = parser.parse_args(args)
    start_log()
    return run(lambda: compare(options.runs, options.out, options.baseline), log)


def compare(folders: Sequence[Path], out: Path, baseline: str | None = None) -> None:
    """Compare run folders; `out` itself is ignored if it is among them.

    Raises:
        ValueError: No run can be read, or a setting is wrong.
    """
    from common.versions import show_command
    from reporting.answer import find_answer
    from reporting.comparison import Comparison
    from reporting.comparison_files import check_output, write_comparison
    from reporting.markdown import terminal_table
    from reporting.table import make_other_results, make_results

    check_output(out)
    runs, problems = read_runs([path for path in folders if path.resolve() != out.resolve()])
    comparison = Comparison(runs, problems, baseline)
    arguments = ["python", "-m", "alignsum", "compare", *map(str, folders), "--out", str(out)]
    write_comparison(comparison, out, show_command(arguments))
    from rich.console import Console

    console = Console()
    for table in (make_results(comparison), make_other_results(comparison)):
        if table.rows:
            console.print(terminal_table(table.narrowed(console.width).texts))
    for line in find_answer(comparison).lines:
        console.print(line, markup=False, highlight=False)
