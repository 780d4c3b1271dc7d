"""The rows that no model makes: references against each other, and the first three utterances.

    python baselines.py --source mini --out runs/demo --toxicity mini
    python baselines.py lead_3 --source data/dialogsum --out runs

Each method writes a run folder, ``OUT/human`` and ``OUT/lead_3``, that ``report.py compare`` reads
like any other. What the two are: reporting/baselines.py.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from common import hub
from common.exits import quieten_models, run, start_log
from common.run_folder import RunFolder, write_text
from common.versions import show_command
from datamodules import sources
from datamodules.reading import ColumnNames, OnBadRow
from datamodules.splits import SplitReader
from lightning_modules.reward_scorer import RewardScorer
from reporting.baselines import METHODS, score_baseline, write_run

log = logging.getLogger("baselines")


def baselines(
    methods: list[str],
    command: str,
    source: str,
    out: str = "runs",
    columns: ColumnNames = ColumnNames(),  # noqa: B008 - frozen
    on_bad_row: OnBadRow = "stop",
    max_test_rows: int | None = None,
    stemmer: bool = True,
    toxicity: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Score what no model made on the test split: human and lead_3, each a run folder.

    Args:
        methods: Of human, lead_3.
        command: The command line, to be recorded.
        source: Hub id, folder with a test split, mini, or challenge; as --data.source of train.py.
        out: Folder in which the run folders lie.
        columns: Names of the source's columns.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        max_test_rows: Take the first rows only.
        stemmer: Compare Porter stems instead of words.
        toxicity: Classifier (hub id, folder or mini) for toxicity and reward; without it none.
        overwrite: Replace what an earlier run left in a run folder.

    Returns:
        The run folders.

    Raises:
        ValueError: Something cannot be had or would be overwritten; nothing was written then.
    """
    folders = {method: RunFolder(Path(out) / method) for method in methods}
    settings = {
        "source": source, "columns": vars(columns), "on_bad_row": on_bad_row,
        "max_test_rows": max_test_rows, "stemmer": stemmer, "toxicity": toxicity,
    }  # fmt: skip
    problems = [
        f"{folder.path} holds a run; replace it by --overwrite true, or name another --out"
        for folder in folders.values()
        if folder.holds_run() and not overwrite
    ]
    problems += find_problems(source, max_test_rows, toxicity)
    if problems:
        raise ValueError("nothing was started: " + "; ".join(problems))
    rows = SplitReader(source, columns, on_bad_row).read("test")
    classifier = RewardScorer(toxicity).eval() if toxicity else None
    scored = {
        method: score_baseline(rows[:max_test_rows], method, stemmer, classifier)
        for method in methods
    }
    for method, baseline in scored.items():
        if baseline.left_out:
            log.warning("%s: left out %d rows with one reference", method, baseline.left_out)
        folders[method].clear()
        write_text(folders[method].config, yaml.safe_dump({"method": method} | settings))
        write_run(folders[method], method, baseline, command)
        log.info("Wrote %s (n = %d)", folders[method].path, len(baseline.rows))
    return [folder.path for folder in folders.values()]


def find_problems(source: str, max_test_rows: int | None, toxicity: str | None) -> list[str]:
    """Say what of these settings cannot be had, before anything is loaded."""
    if not hub.reachable():
        hub.use_cache_only()
    problems = list(sources.find_problems(source))
    if toxicity is not None:
        judge = hub.resolve_model(toxicity, "classifier")
        problems.append(hub.find_model_problem(judge, "toxicity classifier") or "")
    if max_test_rows is not None and max_test_rows < 1:
        problems.append(f"max_test_rows must be at least 1, got {max_test_rows}")
    return [problem for problem in problems if problem]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: see :func:`command_line.run`; 2 also where something would be overwritten.
    """
    start_log()
    quieten_models()
    arguments = sys.argv[1:] if args is None else list(args)
    summary = (baselines.__doc__ or "").partition("\n\n    Args:")[0]
    parser = ArgumentParser(prog="alignsum.commands.baselines.py", description=summary)
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; all if none"
    )
    parser.add_function_arguments(baselines, as_positional=False, skip={"methods", "command"})
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    methods = settings.pop("methods") or list(METHODS)
    if unknown := set(methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; of {', '.join(METHODS)}")
    command = show_command(["python", "alignsum.commands.baselines.py", *arguments])

    def work() -> None:
        baselines(methods, command, **settings)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(main())
