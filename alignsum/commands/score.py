"""`report.py score`: score prediction files."""

import logging
from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser

from alignsum.commands.console import split_names, wide_console
from reporting.pairing import Inputs, Match, read_examples
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

log = logging.getLogger("report")


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
    columns = split_names(prediction_columns), split_names(reference_columns)
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
    console = wide_console()
    console.print(make_score_table(found))
    if pairs:
        console.print(make_difference_table(found, pairs))
    if examples.dialogues is None:
        log.info("No dialogues: novelty, copying and names were left out (see --dialogue_column).")
    log.info("Wrote %s", f"{out} and {target}" if target else out)
    return 0


def add_arguments(command: ArgumentParser) -> None:
    """Add the options of :func:`score`."""
    command.add_argument(
        "--stemmer", action=ActionYesNo(no_prefix="no-"), nargs="?", default=True,
        help="Let ROUGE compare Porter stems instead of words.",
    )  # fmt: skip
    command.add_function_arguments(score, as_positional=False, skip={"stemmer"})
