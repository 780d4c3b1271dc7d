"""The `compare` command: show runs side by side, as a page, tables and plots."""

from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import read_runs, run_command


def main(args: Sequence[str]) -> int:
    """Run the command; returns 1 if a run cannot be read, 2 if none can or a setting is wrong."""
    return run_command("compare", compare, args, "run folders")


def compare(runs: list[str], out: str = "runs/report", baseline: str | None = None) -> int:
    """Compare runs: which method is best, how certain that is, and what it costs.

    Prints a table and writes report.html (one file that works offline: answer, tables, paired
    differences, curves, example browser, token view), comparison.md, comparison.csv and
    plots/*.png. Runs that differ only in their seed become one row. A broken run is named, and the
    others are shown; the exit code is then 1.

      python -m alignsum compare runs/demo/* --out runs/demo/report
      python -m alignsum compare runs/lora runs/ppo --baseline lora

    Args:
        runs: Run folders; `out` itself is ignored if it is among them.
        out: Folder to write to.
        baseline: Run that the others are compared with; the best without training by default.

    Raises:
        ValueError: No run can be read, or a setting is wrong.
    """
    from rich.console import Console

    from common.versions import show_command
    from reporting.answer import find_answer
    from reporting.comparison import Comparison
    from reporting.comparison_files import check_output, write_comparison
    from reporting.markdown import terminal_table
    from reporting.table import make_other_results, make_results

    folder = Path(out)
    check_output(folder)
    others = [path for path in map(Path, runs) if path.resolve() != folder.resolve()]
    comparison = Comparison(*read_runs(others), baseline)
    arguments = ["python", "-m", "alignsum", "compare", *map(str, others), "--out", out]
    write_comparison(comparison, folder, show_command(arguments))
    console = Console()
    for table in (make_results(comparison), make_other_results(comparison)):
        if table.rows:
            console.print(terminal_table(table.narrowed(console.width).texts))
    for line in find_answer(comparison).lines:
        console.print(line, markup=False, highlight=False)
    return 1 if comparison.problems else 0
