"""The command line for results: score files of predictions, compare and examine runs.

python report.py compare runs/lora runs/full_ft --out runs/report
python report.py toxicity runs/ppo --out runs/report --top 20
python report.py score --predictions out.txt --references ref.txt --out scores.json
python report.py frontier runs/sweep_ppo_betas --out runs/frontier
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import rich
from jsonargparse import ActionYesNo, ArgumentParser
from rich.console import Console

from reporting.compare import read_out, write_comparison
from reporting.frontier import choose, make_arms
from reporting.frontier_files import write_frontier
from reporting.frontier_runs import find_runs, group, read_ppo_runs
from reporting.frontier_tables import make_table as make_frontier_table
from reporting.pairing import Inputs, Match, read_examples
from reporting.runs import read_each, read_runs
from reporting.score import (
    choose_pairs,
    describe_examples,
    estimate,
    load_toxicity,
    score_examples,
)
from reporting.score_files import (
    find_output_problem,
    make_difference_table,
    make_score_table,
    write_per_example,
    write_scores,
)
from reporting.tables import make_table
from reporting.toxicity import read_toxicity
from reporting.toxicity_page import make_table as make_toxicity_table
from reporting.toxicity_page import write_toxicity

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
    if not _any_good(good, problems):
        return 2
    console = _console()
    console.print(make_table(good))
    for line in read_out(good):
        console.print(line, markup=False, highlight=False)
    write_comparison(good, problems, Path(out))
    return 0


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
    if not _any_good(good, problems):
        return 2
    try:
        write_toxicity(good, problems, top, Path(out))
    except OSError as error:
        log.error("cannot write to --out %s: %s", out, error)
        return 2
    _console().print(make_toxicity_table(good))
    return 0


def score(
    predictions: str,
    references: str,
    out: str,
    prediction_columns: str = "",
    reference_columns: str = "",
    dialogue_column: str = "",
    match: Match | None = None,
    stemmer: bool = True,
    baseline: str = "",
    toxicity: str | None = None,
    toxic_label: str = "hate",
    per_example: str | None = None,
) -> int:
    """Score predictions by ROUGE, length, novelty, copying and faithfulness, with 95 % intervals.

    Both files are text (one example a line), .jsonl or .csv, and may be the same file. With several
    references each ROUGE is the mean over them and "<key>_best" the best of them. Several
    prediction columns are compared by paired differences. Values in the file are fractions of 1 and
    numbers of words, in the terminal x 100. What each is: docs/evaluation.md.

    Args:
        predictions: File of predictions.
        references: File of references.
        out: JSON file to write.
        prediction_columns: Columns to score, with commas between; each is scored by itself.
            Default: "prediction", or the only column it can be.
        reference_columns: Columns of references, with commas between. Default: "references",
            "summary1", "summary2", ..., "summary", or the only column it can be.
        dialogue_column: Column of dialogues in either file, for novelty, copying and faithfulness.
            Default: "dialogue", and without these where there is none.
        match: Pair the rows of the two files by their "id" (or "fname") or by their order. Default:
            by id where both files have one.
        stemmer: Let ROUGE compare Porter stems instead of words.
        baseline: The prediction column to compare the others with. Default: every two columns.
        toxicity: Classifier to score toxicity with: hub id, folder or "mini".
        toxic_label: The classifier's label whose probability is the toxicity.
        per_example: .jsonl or .csv file to write the values of every example to.

    Returns:
        Exit code: 0, or 2 where the files cannot be scored.
    """
    columns = _split(prediction_columns), _split(reference_columns)
    files = Path(predictions), Path(references)
    target = Path(per_example) if per_example else None
    try:
        if problem := find_output_problem(Path(out), target, files):
            raise ValueError(problem)
        examples = read_examples(Inputs(*files, *columns, dialogue_column, match))
        pairs = choose_pairs(list(examples.predictions), baseline)
        rate = load_toxicity(toxicity, toxic_label) if toxicity else None
        scores = score_examples(examples, stemmer, rate)
        found = estimate(scores, pairs)
        write_scores(Path(out), found)
        if target:
            write_per_example(target, describe_examples(examples, scores))
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    console = _console()
    console.print(make_score_table(found))
    if pairs:
        console.print(make_difference_table(found, pairs))
    if examples.dialogues is None:
        log.info("No dialogues: novelty, copying and names were left out (see --dialogue_column).")
    log.info("Wrote %s", f"{out} and {target}" if target else out)
    return 0


def _any_good(good: Sequence[object], problems: Sequence[str]) -> bool:
    """Say what could not be read, and whether anything is left."""
    for problem in problems:
        log.error("%s", problem)
    if not good:
        log.error("None of the %d folders holds a run that can be shown.", len(problems))
    return bool(good)


def frontier(runs: list[str], out: str = "runs/frontier", max_rouge_loss: float = 1.0) -> int:
    """Show over seeds what tested PPO runs gained in toxicity and lost in ROUGE-1, and choose.

    Runs whose settings differ in nothing but the seed are one row; those that differ in the weight
    of the KL besides are joined in the plot. Writes frontier.md, frontier.json (by row),
    frontier.csv (by run), plots/seeds.png and plots/frontier.png to a folder, and marks the least
    toxic row that loses no more ROUGE-1 than is allowed. A folder that cannot be used is named, and
    the others are shown.

    Args:
        runs: Run folders, or folders that hold them, such as a sweep's.
        out: Folder to write to.
        max_rouge_loss: How much test ROUGE-1 may be lost, times 100.

    Returns:
        Exit code: 0, or 2 where no run could be used.
    """
    found, problems = read_ppo_runs(find_runs([Path(run) for run in runs]))
    for problem in problems:
        log.error("%s", problem)
    try:
        if not max_rouge_loss >= 0:
            raise ValueError(f"--max_rouge_loss must be 0 or more, got {max_rouge_loss}")
        if not found:
            raise ValueError("There is no tested PPO run to show.")
        arms = make_arms(group(found), max_rouge_loss / 100)
    except ValueError as error:
        log.error("%s", error)
        return 2
    chosen = choose(arms, max_rouge_loss / 100)
    _console().print(make_frontier_table(arms, chosen, max_rouge_loss / 100))
    write_frontier(Path(out), arms, chosen, max_rouge_loss / 100, problems)
    return 0


def _console() -> Console:
    """The terminal; where there is none, one that is wide enough for our tables."""
    console = rich.get_console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


COMMANDS: dict[str, Callable[..., int]] = {
    "compare": compare, "toxicity": toxicity, "frontier": frontier, "score": score,
}  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    parser = ArgumentParser(
        prog="report.py", description="Score files of predictions; compare and examine runs."
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, function in COMMANDS.items():
        summary, _, _ = (function.__doc__ or "").partition("\n\n    Args:")
        command = ArgumentParser(description=summary)
        if function is not score:
            command.add_argument(
                "runs", nargs="+", metavar="RUN", help="run folders, in the order of the table"
            )
        else:
            command.add_argument(
                "--stemmer", action=ActionYesNo(no_prefix="no-"), nargs="?", default=True,
                help="Let ROUGE compare Porter stems instead of words.",
            )  # fmt: skip
        command.add_function_arguments(function, as_positional=False, skip={"runs", "stemmer"})
        commands.add_subcommand(name, command, help=summary.partition("\n")[0])
    settings = parser.parse_args(args).as_dict()
    return COMMANDS[settings["command"]](**settings[settings["command"]])


if __name__ == "__main__":
    sys.exit(main())
