"""Which runs are the same method and the same settings, and differ in their seed alone."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reporting.runs import Run

# What says where a run lies or how it was started, and nothing about what it learnt.
_OF_ONE_RUN = (
    "seed_everything", "data.init_args.seed", "run_dir", "resume", "overwrite", "ckpt_path",
    "weights_only", "verbose", "checkpoint.dirpath", "checkpoint.verbose",
    "trainer.default_root_dir", "trainer.logger",
)  # fmt: skip
_SEED = "{seed}"


class Group(NamedTuple):
    """Runs that differ in their seed alone, and what tables call them."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """A run that stands for all in what they have in common."""
        return self.runs[0]

    @property
    def by_seed(self) -> dict[int | None, Run]:
        """The runs by their seeds, in the order of these."""
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed or 0)}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs of one method and one set of settings together, in the order of the first of each.

    A run without a seed, and a second one of the same seed, stay by themselves: two runs of one
    seed are no two draws.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        key, repeated = _identity(run), 0
        while any(run.seed is None or run.seed == other.seed for other in found.get(key, [])):
            repeated += 1
            key = f"{_identity(run)} {repeated}"
        found.setdefault(key, []).append(run)
    labels = [_label(members) for members in found.values()]
    # Settings that differ too little to show in a name: the name of the first run tells them apart.
    counts = Counter(labels)
    return [
        Group(members[0].name if counts[label] > 1 else label, tuple(members))
        for label, members in zip(labels, found.values(), strict=True)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give settings by dotted names, e.g. "model.init_args.r"; a list is one value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def shared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what decides a run's result, by dotted names."""
    return {
        name: value
        for name, value in flatten(config).items()
        if not any(name == one or name.startswith(f"{one}.") for one in _OF_ONE_RUN)
    }


def settings(run: Run) -> dict[str, Any]:
    """Give what decides a run's result, by dotted names, with its own seed masked in paths."""
    return {
        name: mask_seed(value, run.seed) if isinstance(value, str) and "/" in value else value
        for name, value in shared_settings(run.config).items()
    }


def mask_seed(text: str, seed: int | None) -> str:
    """Put a mark in place of a run's seed where a text has it as a number of its own.

    So `runs/seeds/3/lora/export`, which a PPO run of seed 3 starts from, is for the run of seed 4
    what `runs/seeds/4/lora/export` is. The 5 of "t5" is no number of its own.
    """
    if seed is None:
        return text
    return re.sub(rf"(?i)(?<![a-z0-9.])(?:seed|s)?[-_=]?{seed}(?![a-z0-9.])", _SEED, text)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Give the settings that not all runs share, each with its value in every run.

    A run that has no such setting has None there.
    """
    every = [settings(run) for run in runs]
    names = dict.fromkeys(name for one in every for name in one)
    table = {name: [one.get(name) for one in every] for name in names}
    return {
        name: values for name, values in table.items() if any(one != values[0] for one in values)
    }


def _identity(run: Run) -> str:
    own: Any = settings(run) or mask_seed(run.name, run.seed)
    return json.dumps([run.method, run.summary.get("backbone"), own], sort_keys=True, default=str)


def _label(members: Sequence[Run]) -> str:
    """Give the name that is left without the seed, or that of the method."""
    if len(members) == 1:
        return members[0].name
    names = {_without_seed(mask_seed(run.name, run.seed)) for run in members}
    return names.pop() if len(names) == 1 else members[0].method


def _without_seed(name: str) -> str:
    """Take the mark out of a name or a path, and of a path the last part that is left."""
    parts = [part.replace(_SEED, "").strip("-_. ") for part in name.split("/")]
    return next((part for part in reversed(parts) if part), name)
