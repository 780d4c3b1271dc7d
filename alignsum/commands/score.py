"""The `score` command: score a file of predictions against references."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import run_command, split_names

log = logging.getLogger("score")


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if the files cannot be scored."""
    return run_command("score", score, args)


def score(
    predictions: str,
    references: str,
    out: str,
    prediction_columns: str = "",
    reference_columns: str = "",
    stemmer: bool = True,
    toxicity: str | None = None,
    toxic_label: str = "hate",
) -> None:
    r"""Score predictions against references by ROUGE, with 95 % bootstrap intervals.

    Both files are .txt (one example per line), .jsonl or .csv, and may be the same file. Rows are
    paired by id where both files have ids, else by order. With several references a ROUGE value is
    the mean over them, and "<key>_best" the best of them. Length, novelty, copying and faithfulness
    are scored as well, the latter if a file has a column "dialogue". Several prediction columns are
    compared with the first one by paired differences. The JSON file has fractions of 1, the
    terminal shows them x 100.

      python -m alignsum score --predictions out.txt --references test.csv --out scores.json
      python -m alignsum score --predictions all.jsonl --references all.jsonl \
          --prediction_columns lora,ppo --reference_columns summary1,summary2 --out scores.json

    Args:
        predictions: File of predictions.
        references: File of references.
        out: JSON file to write.
        prediction_columns: Columns to score, each by itself: A,B. By default "prediction" or the
            only candidate.
        reference_columns: Columns of references: C,D. By default "references", "summary1",
            "summary2", ..., "summary", or the only candidate.
        stemmer: Compare Porter stems instead of words.
        toxicity: Toxicity classifier: hub id, folder or "mini".
        toxic_label: Its toxic label.

    Raises:
        ValueError: The files cannot be scored, or `out` is one of them or a folder.
    """
    file = Path(out)
    if file.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file.")
    if file.resolve() in (Path(predictions).resolve(), Path(references).resolve()):
        raise ValueError(f"--out {out} would overwrite an input file; name another.")
    from rich.console import Console

    from common.run_folder import write_text
    from reporting.markdown import terminal_table
    from reporting.prediction_files import read_examples
    from reporting.score import load_toxicity, score_examples, tabulate_scores

    examples = read_examples(
        Path(predictions), Path(references), split_names(prediction_columns),
        split_names(reference_columns),
    )  # fmt: skip
    judge = load_toxicity(toxicity, toxic_label) if toxicity else None
    found = score_examples(examples, stemmer, judge)
    fields = {
        name: {metric: estimate._asdict() for metric, estimate in column.items()}
        for name, column in found.items()
    }
    write_text(file, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    caption = f"n = {len(examples.references)}; x 100 except words; * a difference clear of 0"
    Console().print(terminal_table(tabulate_scores(found), ("metric",), caption))
    log.info("Wrote %s", out)
