"""The command line for results: score prediction files, compare runs.

python report.py compare runs/lora runs/full_ft --out runs/report
python report.py score --predictions out.txt --references ref.txt --out scores.json
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import rich
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from metrics.rouge import KEYS
from reporting.compare import read_out, write_comparison
from reporting.runs import read_runs
from reporting.score import score_files
from reporting.tables import LABELS, format_estimate, format_interval, make_table
from run_folder import write_text

log = logging.getLogger("report")

# A table of ten columns needs this much; a file or a pipe has it, whatever rich would assume.
_WIDTH = 170


def compare(runs: list[str], out: str = "runs/report") -> int:
    """Compare runs: a table here, and comparison.md, comparison.csv and a plot in a folder.

    Values and intervals are those of each run's summary.json. A folder that is missing or broken is
    named, and the others are shown.

    Args:
        runs: Run folders, in the order of the table.
        out: Folder to write to.

    Returns:
        Exit code: 0, or 2 where no run could be read.
    """
    good, problems = read_runs([Path(run) for run in runs])
    for problem in problems:
        log.error("%s", problem)
    if not good:
        log.error("None of the %d folders holds a run that can be compared.", len(runs))
        return 2
    console = rich.get_console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(make_table(good))
    for line in read_out(good):
        console.print(line, markup=False, highlight=False)
    write_comparison(good, problems, Path(out))
    return 0


def score(
    predictions: str,
    references: str,
    out: str,
    prediction_columns: str = "",
    reference_columns: str = "",
    stemmer: bool = True,
) -> int:
    """Score predictions against references by ROUGE, with 95 % bootstrap intervals.

    Both files are text (one example a line), .jsonl or .csv, and may be the same file. With several
    reference columns each value is the mean over them and "<key>_best" the best of them. Values in
    the file are fractions of 1, in the terminal x 100.

    Args:
        predictions: File of predictions.
        references: File of references, row i belonging to row i of the predictions.
        out: JSON file to write.
        prediction_columns: Columns to score, with commas between; each is scored by itself.
        reference_columns: Columns of references, with commas between.
        stemmer: Compare Porter stems instead of words.

    Returns:
        Exit code: 0, or 2 where a file cannot be scored.
    """
    try:
        scores = score_files(
            Path(predictions),
            Path(references),
            _split(prediction_columns),
            _split(reference_columns),
            stemmer,
        )
    except ValueError as error:
        log.error("%s", error)
        return 2
    fields = {
        name: {key: estimate._asdict() for key, estimate in keys.items()}
        for name, keys in scores.items()
    }
    write_text(Path(out), json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    table = Table(title="ROUGE F1 x 100 (95 % interval)", title_justify="left")
    for heading in ("column", "n", *LABELS.values()):
        table.add_column(heading)
    for name, keys in scores.items():
        cells = [f"{format_estimate(keys[key])} ({format_interval(keys[key])})" for key in KEYS]
        table.add_row(name, str(keys["rouge1"].n), *cells)
    rich.print(table)
    log.info("Wrote %s", out)
    return 0


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    parser = ArgumentParser(prog="report.py", description="Score prediction files; compare runs.")
    commands = parser.add_subcommands(required=True, dest="command")
    for function in (compare, score):
        summary, _, _ = (function.__doc__ or "").partition("\n\n    Args:")
        command = ArgumentParser(description=summary)
        if function is compare:
            command.add_argument(
                "runs", nargs="+", metavar="RUN", help="run folders, in the order of the table"
            )
        command.add_function_arguments(function, as_positional=False, skip={"runs"})
        commands.add_subcommand(function.__name__, command, help=summary.partition("\n")[0])
    settings = parser.parse_args(args).as_dict()
    run = compare if settings["command"] == "compare" else score
    return run(**settings[settings["command"]])


if __name__ == "__main__":
    sys.exit(main())
