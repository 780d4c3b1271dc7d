"""The `baselines` command: score people and lead-3 on the test split."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignsum.commands.options import add_switch, make_parser
from common.exits import quieten_models, run, start_log

if TYPE_CHECKING:
    from common.run_folder import RunFolder

log = logging.getLogger("baselines")

METHODS = ("human", "lead_3")

HELP = """\
Score two baselines without a model on the test split.

  human   each reference against the others: how far apart people's summaries are
  lead_3  the first three utterances of the dialogue

Each writes a run folder (OUT/human, OUT/lead_3) that `compare` reads like any other."""

EXAMPLE = """\
example:
  python -m alignsum baselines --source mini --toxicity mini --out runs/demo
  python -m alignsum baselines lead_3 --source data/dialogsum --out runs"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if data are unavailable or a run would be overwritten."""
    parser = make_parser("baselines", HELP, EXAMPLE)
    add = parser.add_argument
    add("methods", nargs="*", metavar="METHOD", help="human or lead_3 (default: both)")
    add("--source", required=True, help="hub id, file, folder with a test split, or mini")
    add("--out", default=Path("runs"), type=Path, metavar="DIR", help="folder of the run folders")
    add("--max_test_rows", type=int, metavar="N", help="use the first N rows only")
    add("--on_bad_row", default="stop", choices=("stop", "skip"), help="(default: stop)")
    add("--toxicity", metavar="MODEL", help="classifier for toxicity and reward: hub id or mini")
    for name in ("id", "dialogue", "summary"):
        add(f"--columns.{name}", default=name, metavar="NAME", help=f"name of the column {name}")
    add_switch(parser, "--stemmer", True, "compare Porter stems instead of words")
    add_switch(parser, "--overwrite", False, "replace earlier run folders")
    options = parser.parse_args(args)
    if unknown := sorted(set(options.methods) - set(METHODS)):
        parser.error(f"no such method: {', '.join(unknown)}; choose from {', '.join(METHODS)}")
    start_log()
    return run(lambda: baselines(options, ["python", "-m", "alignsum", "baselines", *args]), log)


def baselines(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Score the baselines that the options name.

    Args:
        options: The parsed arguments.
        command: The command line, recorded in summary.json.

    Raises:
        ValueError: Something is unavailable or would be overwritten; nothing is written then.
    """
    import yaml

    from common import hub
    from common.run_folder import RunFolder, write_text
    from common.versions import show_command
    from datamodules import sources
    from datamodules.reading import ColumnNames
    from datamodules.splits import SplitReader
    from lightning_modules.reward_scorer import RewardScorer
    from reporting.baselines import score_baseline

    names = options.methods or list(METHODS)
    folders = {name: RunFolder(options.out / name) for name in names}
    problems = [
        f"{folder.path} holds a run; use --overwrite true or another --out"
        for folder in folders.values()
        if folder.holds_run() and not options.overwrite
    ]
    problems += sources.find_problems(options.source)
    if options.toxicity is not None:
        path = hub.resolve_model(options.toxicity, "classifier")
        problems += filter(None, [hub.find_model_problem(path, "toxicity classifier")])
    if options.max_test_rows is not None and options.max_test_rows < 1:
        problems.append(f"--max_test_rows must be at least 1, got {options.max_test_rows}")
    if problems:
        raise ValueError("nothing was started: " + "; ".join(problems))
    columns = ColumnNames(
        *(getattr(options, f"columns.{name}") for name in ("id", "dialogue", "summary"))
    )
    rows = SplitReader(options.source, columns, options.on_bad_row).read("test")
    rows = rows[: options.max_test_rows]
    quieten_models()
    classifier = RewardScorer(options.toxicity).eval() if options.toxicity else None
    scored = {name: score_baseline(rows, name, options.stemmer, classifier) for name in names}
    settings = {key: value for key, value in vars(options).items() if "." not in key}
    settings |= {"columns": vars(columns), "out": str(options.out)}
    for name, baseline in scored.items():
        if baseline.skipped:
            log.warning("%s: skipped %d rows with one reference", name, baseline.skipped)
        folders[name].clear()
        write_text(folders[name].config, yaml.safe_dump({"method": name} | settings))
        write_run(folders[name], name, baseline.rows, baseline.scores, show_command(command))
        log.info("Wrote %s (n = %d)", folders[name].path, len(baseline.rows))


def write_run(
    folder: "RunFolder",
    method: str,
    rows: Sequence[dict[str, Any]],
    scores: Mapping[str, Sequence[float]],
    command: str,
) -> None:
    """Write predictions.jsonl and summary.json as a test would."""
    from common.versions import find_versions
    from metrics.intervals import bootstrap_mean

    folder.merge_predictions(
        [row | {name: column[i] for name, column in scores.items()} for i, row in enumerate(rows)]
    )
    folder.update_summary(
        command=command, versions=find_versions(), seed=None, backbone=None, method=method,
        parameters={"trainable": 0, "total": 0}, peak_memory_bytes=None, seconds=None,
    )  # fmt: skip
    folder.record_metrics(
        {f"test/{name}": bootstrap_mean(values) for name, values in scores.items()}
    )
