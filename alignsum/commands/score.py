"""The `score` command: score a file of predictions against references."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands.options import add_switch, make_parser, parse_names
from common.exits import run, start_log

log = logging.getLogger("score")

HELP = """\
Score predictions against references by ROUGE, with 95 % bootstrap intervals.

Both files are .txt (one example per line), .jsonl or .csv, and may be the same file. With several
references a ROUGE value is the mean over them, and "<key>_best" the best of them. Length, novelty,
copying and faithfulness are scored as well, the latter if a file has a column "dialogue". Several
prediction columns are compared with the first one by paired differences. The JSON file has
fractions of 1, the terminal shows them x 100."""

EXAMPLE = """\
example:
  python -m alignsum score --predictions summaries.txt --references test.csv --out scores.json
  python -m alignsum score --predictions all.jsonl --references all.jsonl \\
      --prediction_columns lora,ppo --reference_columns summary1,summary2 --out scores.json"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if the files cannot be scored."""
    parser = make_parser("score", HELP, EXAMPLE)
    add = parser.add_argument
    add("--predictions", required=True, type=Path, metavar="FILE", help="file of predictions")
    add("--references", required=True, type=Path, metavar="FILE", help="file of references")
    add("--out", required=True, type=Path, metavar="FILE", help="JSON file to write")
    add(
        "--prediction_columns", default=[], type=parse_names, metavar="A,B",
        help='columns to score, each by itself (default: "prediction" or the only candidate)',
    )  # fmt: skip
    add(
        "--reference_columns", default=[], type=parse_names, metavar="C,D",
        help='columns of references (default: "references", "summary1", "summary2", ..., '
        '"summary", or the only candidate)',
    )  # fmt: skip
    add(
        "--match", choices=("id", "order"),
        help='pair rows by their "id" (or "fname") or by order (default: by id if both have one)',
    )  # fmt: skip
    add_switch(parser, "--stemmer", True, "compare Porter stems instead of words")
    add("--toxicity", metavar="MODEL", help='classifier: hub id, folder or "mini"')
    add("--toxic_label", default="hate", metavar="LABEL", help="its toxic label (default: hate)")
    options = parser.parse_args(args)
    start_log()
    return run(lambda: score(options), log)


def score(options: argparse.Namespace) -> None:
    """Score the files that the options name.

    Raises:
        ValueError: The files cannot be scored, or `out` is one of them or a folder.
    """
    out: Path = options.out
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file.")
    if out.resolve() in (options.predictions.resolve(), options.references.resolve()):
        raise ValueError(f"--out {out} would overwrite an input file; name another.")
    from common.run_folder import write_text
    from reporting.markdown import terminal_table
    from reporting.prediction_files import read_examples
    from reporting.score import load_toxicity, score_examples, tabulate_scores

    examples = read_examples(
        options.predictions, options.references, options.prediction_columns,
        options.reference_columns, options.match,
    )  # fmt: skip
    toxicity = load_toxicity(options.toxicity, options.toxic_label) if options.toxicity else None
    found = score_examples(examples, options.stemmer, toxicity)
    fields = {
        name: {metric: estimate._asdict() for metric, estimate in column.items()}
        for name, column in found.items()
    }
    write_text(out, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    from rich.console import Console

    caption = f"n = {len(examples.references)}; x 100 except words; * a difference clear of 0"
    Console().print(terminal_table(tabulate_scores(found), ("metric",), caption))
    log.info("Wrote %s", out)
