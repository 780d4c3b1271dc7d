"""Read PPO runs for the frontier, and put those together that differ in their seed only."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common.run_folder import RunFolder
from reporting.groups import shared_settings
from reporting.runs import late

PAIRED = ("toxicity", "rouge1")
"""Values per dialogue that a run must have, each after and before training."""

JUDGE = "judge"
"""The value of callbacks.judge.JudgeCallback under its own name, where there is one."""

_KL_COEF = "model.init_args.ppo.kl_coef"
_MONITOR = "checkpoint.monitor"
_SEED = re.compile(r"(?:^|[-_.])(?:seed|s)[-_.]?\d+$")


class PPORun(NamedTuple):
    """One tested PPO run.

    Attributes:
        name: Name of its folder.
        settings: All settings but those of this one run, with dots in their names.
        seed: Its seed; None where unknown.
        dialogues: Id and text of each test dialogue.
        values: One number per dialogue: ``toxicity``, ``toxicity_before``, and so on.
        kl: Sequence KL to the reference, nats: mean over the last quarter of the batches. Not a
            number where the tested checkpoint was chosen by a metric and may be an earlier one.
        warnings: What the watch warned of, in its order; None where the run has no record of it.
    """

    name: str
    settings: dict[str, Any]
    seed: int | None
    dialogues: list[tuple[str, str]]
    values: dict[str, list[float]]
    kl: float
    warnings: list[str] | None

    @property
    def kl_coef(self) -> float:
        """Weight of the KL."""
        return float(self.settings[_KL_COEF])

    @property
    def line(self) -> str:
        """The same for runs that differ in seed and weight of the KL only."""
        return _key({key: value for key, value in self.settings.items() if key != _KL_COEF})


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Give the run folders among some folders: those themselves, and those directly in others."""
    found: list[Path] = []
    for path in paths:
        if RunFolder(path).holds_run() or not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if (each / "summary.json").exists()]
        found += inside or [path]
    return list(dict.fromkeys(found))


def read_ppo_runs(paths: Sequence[Path]) -> tuple[list[PPORun], list[str]]:
    """Read run folders.

    Returns:
        The good runs in the given order, and one sentence for each folder that could not be used.
    """
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(read_ppo_run(path))
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    return runs, problems


def read_ppo_run(path: Path) -> PPORun:
    """Read one run folder.

    Raises:
        ValueError: If it holds no tested PPO run; says what is missing.
    """
    folder = RunFolder(path)
    summary = folder.read_summary()
    if not summary:
        raise ValueError("there is no summary.json in it; did the run finish?")
    if summary.get("method") != "ppo":
        raise ValueError(f"it holds a run by {summary.get('method')}, not by ppo")
    rows = folder.read_predictions()
    wanted = [name + end for name in PAIRED for end in ("", "_before")]
    if not rows or (missing := [name for name in wanted if name not in rows[0]]):
        there = f"without {', '.join(missing)}" if rows else "not there or empty"
        raise ValueError(
            f"predictions.jsonl is {there}; test the run with --toxicity.model set (train.py test)"
        )
    names = [*wanted, *(name for name in (JUDGE, f"{JUDGE}_before") if name in rows[0])]
    try:
        values = {name: [float(row[name]) for row in rows] for name in names}
        settings = _read_settings(folder)
        watch = summary.get("watch")
        kl = math.nan if settings.get(_MONITOR) else _read_kl(folder)
        return PPORun(
            path.resolve().name, settings, summary.get("seed"),
            [(str(row["id"]), str(row.get("dialogue"))) for row in rows], values, kl,
            None if watch is None else [str(said["condition"]) for said in watch],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not as a run leaves it ({error!r})") from error


def group(runs: Sequence[PPORun]) -> dict[str, list[PPORun]]:
    """Put runs together whose settings are the same but for the seed.

    Returns:
        Runs by a name for them: that of the first without its seed, in order of first appearance.

    Raises:
        ValueError: If runs of a group have the same seed, or were tested on other dialogues.
    """
    groups: dict[str, list[PPORun]] = {}
    for run in runs:
        groups.setdefault(_key(run.settings), []).append(run)
    short = [_SEED.sub("", members[0].name) or members[0].name for members in groups.values()]
    named = {}
    for name, members in zip(short, groups.values(), strict=True):
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            same = ", ".join(run.name for run in members)
            raise ValueError(f"{same}: equal settings, and the seeds are {seeds}: give each once")
        if any(run.dialogues != members[0].dialogues for run in members):
            raise ValueError(f"{name}: its runs were not tested on the same dialogues")
        named[name if short.count(name) == 1 else members[0].name] = list(members)
    return named


def _read_settings(folder: RunFolder) -> dict[str, Any]:
    try:
        content = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"config.yaml cannot be read ({error})") from error
    return shared_settings(content)


def _read_kl(folder: RunFolder) -> float:
    logged = [float(row["objective/kl"] or "nan") for row in folder.read_metrics_csv()]
    found = [kl for kl in logged if math.isfinite(kl)]
    last = late(found)
    return sum(last) / len(last) if last else math.nan


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
