"""Does every start of a soft prompt learn? Train one from each, and set it beside zero shot.

    python -m benchmarks.soft_prompt_starts
    python -m benchmarks.soft_prompt_starts --source /data/dialogsum --root runs/starts_real
    python -m benchmarks.soft_prompt_starts --limit 20        # batches; only to see that it works

The backbone is the miniature's. Writes <root>/{zero_shot,random,vocabulary,text} (folders of
earlier calls are replaced) and prints rouge1 over the test dialogues and its paired difference to
zero shot, each with its 95 % bootstrap interval (Lester et al. 2021, figure 3b, compares the same
starts). Exits with 1 where an interval of a difference does not lie above 0.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.run_folder import RunFolder
from metrics.intervals import Estimate, bootstrap_mean, paired_change
from reporting.numbers import format_interval, format_value

MINI = ["--config", "configs/overlays/mini.yaml"]
SOFT_PROMPT = ["--config", "configs/soft_prompt.yaml", *MINI]
RUNS: dict[str, list[str]] = {
    "zero_shot": ["--config", "configs/in_context.yaml", *MINI],
    "random": [*SOFT_PROMPT, "--model.init", "random"],
    "vocabulary": [*SOFT_PROMPT, "--model.init", "vocabulary"],
    "text": [
        *SOFT_PROMPT, "--model.init", "text",
        "--model.init_text", "Summarize what the two persons say, in a few short sentences.",
    ],
}  # fmt: skip
"""Name of each run and its settings."""

console = Console(soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Train and test the starts one after the other, then print the table.

    Returns:
        0, 1 where a start does not beat zero shot, or the exit code of a command that failed.
    """
    options = parse(arguments)
    for name, settings in RUNS.items():
        common = [
            "--run_dir", f"{options.root}/{name}", "--seed_everything", str(options.seed),
            "--overwrite", "true",
        ]  # fmt: skip
        if options.source:
            common += ["--data.source", options.source]
        if options.limit:
            for part in ("train", "val", "test"):
                common += [f"--trainer.limit_{part}_batches", str(options.limit)]
        for command in ("fit", "test"):
            words = ["train.py", command, *settings, *common]
            console.print(f"$ python {' '.join(words)}", style="cyan", markup=False)
            if code := subprocess.call([sys.executable, *words]):  # noqa: S603
                return code
    return show({name: read_scores(Path(options.root) / name) for name in RUNS})


def show(scores: dict[str, dict[str, float]]) -> int:
    """Print the table; give 1 where a start does not beat zero shot, else 0.

    Args:
        scores: rouge1 by id, by run.
    """
    table = Table("start", "n", "rouge1 x 100", "minus zero shot", title="Starts of a soft prompt")
    base = scores["zero_shot"]
    table.add_row("zero_shot", str(len(base)), cell(bootstrap_mean(list(base.values()))), "")
    missed = False
    for name in (run for run in RUNS if run != "zero_shot"):
        values = [scores[name][row] for row in base]
        change = paired_change(list(base.values()), values)
        missed |= not (change.low or 0) > 0
        table.add_row(name, str(len(values)), cell(bootstrap_mean(values)), cell(change))
    console.print(table)
    return int(missed)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a soft prompt from each start.")
    parser.add_argument("--root", default="runs/soft_prompt_starts", help="folder of the runs")
    parser.add_argument("--source", help="data as for --data.source; the miniature if not given")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--limit", type=int, help="batches of train, validation and test")
    return parser.parse_args(arguments)


def read_scores(folder: Path) -> dict[str, float]:
    """Read rouge1 of each test dialogue by its id."""
    return {row["id"]: row["rouge1"] for row in RunFolder(folder).read_predictions()}


def cell(estimate: Estimate) -> str:
    """Show an estimate times 100 with its interval."""
    return f"{format_value(estimate)} ({format_interval(estimate)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
