"""The `frontier` command: weigh gains in toxicity against losses in ROUGE-1."""

from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import read_runs, run_command


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if no run can be used."""
    help_text = "run folders, or folders that contain run folders, such as a sweep's"
    return run_command("frontier", frontier, args, help_text)


def frontier(runs: list[str], out: str = "runs/frontier", max_rouge_loss: float = 1.0) -> None:
    """Weigh what PPO and DPO runs gain in toxicity against what they lose in ROUGE-1, over seeds.

    Runs that differ only in their seed become one arm. Names the least toxic arm that loses no
    more ROUGE-1 than allowed. Writes frontier.md and plots/frontier.png.

      python -m alignsum frontier runs/sweep --max_rouge_loss 1 --out runs/frontier

    Args:
        runs: Run folders, or folders that contain run folders.
        out: Folder to write to.
        max_rouge_loss: Accepted loss of ROUGE-1, times 100.

    Raises:
        ValueError: No run can be used, or the limit is negative.
    """
    from rich.console import Console

    from reporting import frontier as work
    from reporting.comparison import Comparison
    from reporting.markdown import terminal_table

    if not max_rouge_loss >= 0:
        raise ValueError(f"--max_rouge_loss must be 0 or more, got {max_rouge_loss}")
    folders = work.find_run_folders(list(map(Path, runs)))
    comparison = Comparison(*read_runs(folders, work.check_run))
    table, answer = work.write_frontier(comparison, max_rouge_loss / 100, Path(out))
    console = Console()
    shown = table.narrowed(console.width).texts
    console.print(terminal_table(shown, caption=f"{work.CAPTION}\n{answer}"))
