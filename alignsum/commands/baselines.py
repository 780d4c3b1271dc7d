"""The `baselines` command: score people and lead-3 on the test split."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from alignsum.commands.options import run_command

log = logging.getLogger("baselines")


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if data are unavailable or a run would be overwritten."""
    # Without a method: both.
    named = args if args and not args[0].startswith("-") else ["human", "lead_3", *args]
    return run_command("baselines", baselines, named, "human or lead_3 (default: both)")


def baselines(
    runs: list[str],
    source: str,
    out: str = "runs",
    max_test_rows: int | None = None,
    on_bad_row: Literal["stop", "skip"] = "stop",
    toxicity: str | None = None,
    stemmer: bool = True,
    overwrite: bool = False,
) -> None:
    """Score two baselines without a model on the test split.

      human   each reference against the others: how far apart people's summaries are
      lead_3  the first three utterances of the dialogue

    Each writes a run folder (OUT/human, OUT/lead_3) that `compare` reads like any other.

      python -m alignsum baselines --source mini --toxicity mini --out runs/demo
      python -m alignsum baselines lead_3 --source data/dialogsum --out runs

    Args:
        runs: Names of the baselines.
        source: Hub id, file, folder with a test split, or mini; see --data.source.
        out: Folder of the run folders.
        max_test_rows: Use the first rows only.
        on_bad_row: Stop at rows that cannot be read, or skip them.
        toxicity: Classifier for toxicity and reward: hub id, folder or mini.
        stemmer: Compare Porter stems instead of words.
        overwrite: Replace earlier run folders.

    Raises:
        ValueError: Something is unavailable or would be overwritten; nothing is written then.
    """
    import yaml

    from common import hub
    from common.exits import quieten_models
    from common.run_folder import RunFolder, write_text
    from common.versions import show_command
    from datamodules import sources
    from datamodules.splits import DialogueReader
    from lightning_modules.reward_scorer import RewardScorer
    from reporting.baselines import METHODS, score_baseline, write_run

    if unknown := sorted({*runs} - {*METHODS}):
        raise ValueError(f"no such baseline: {', '.join(unknown)}; there are human and lead_3")
    folders = {name: RunFolder(Path(out) / name) for name in runs}
    problems = [
        f"{folder.path} contains a run; use --overwrite true or another --out"
        for folder in folders.values()
        if folder.holds_run() and not overwrite
    ]
    problems += sources.find_problems(source)
    if toxicity is not None:
        path = hub.resolve_model(toxicity, "classifier")
        problems += filter(None, [hub.find_model_problem(path, "toxicity classifier")])
    if max_test_rows is not None and max_test_rows < 1:
        problems.append(f"--max_test_rows must be at least 1, got {max_test_rows}")
    if problems:
        raise ValueError("nothing was started: " + "; ".join(problems))
    rows = DialogueReader(source, on_bad_row=on_bad_row).read("test")[:max_test_rows]
    quieten_models()
    classifier = RewardScorer(toxicity).eval() if toxicity else None
    scored = {name: score_baseline(rows, name, stemmer, classifier) for name in runs}
    given = {
        "source": source, "out": out, "max_test_rows": max_test_rows, "on_bad_row": on_bad_row,
        "toxicity": toxicity, "stemmer": str(stemmer).lower(),
    }  # fmt: skip
    command = ["python", "-m", "alignsum", "baselines", *runs]
    for name, value in given.items():
        command += [] if value is None else [f"--{name}", str(value)]
    judge = {"toxicity": {"model": toxicity}}
    for name, baseline in scored.items():
        if baseline.skipped:
            log.warning("%s: skipped %d rows with one reference", name, baseline.skipped)
        folders[name].clear()
        write_text(folders[name].config, yaml.safe_dump({"method": name} | given | judge))
        write_run(folders[name], name, baseline, show_command(command))
        log.info("Wrote %s (n = %d)", folders[name].path, len(baseline.rows))
