"""Group runs that differ only in their seed, and find settings that differ between runs."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reporting.runs import Run

# Settings of a single run: where it is stored and how it was started, not what it learned.
_IGNORED = (
    "seed_everything", "data.seed", "run_dir", "resume", "overwrite", "ckpt_path",
    "weights_only", "verbose", "checkpoint.dirpath", "checkpoint.verbose",
    "trainer.default_root_dir", "trainer.logger",
)  # fmt: skip
_SEED = "{seed}"

KINDS = ("prompting", "supervised", "preferences and RL", "reward models", "no model")
"""Kinds of methods, in the order of tables and charts; each has a color of the palette."""


class Group(NamedTuple):
    """Runs that differ only in their seed, and their name in tables."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that represents what all have in common."""
        return self.runs[0]

    @property
    def kind(self) -> int:
        """Position of the method's kind in `KINDS`."""
        if not self.first.has_model:
            return 4
        aligned = {"objective/reward", "rewards/margin"} & set(self.first.curves)
        if aligned or self.first.method in ("ppo", "dpo"):
            return 2
        tests = {name for name in self.first.metrics if name.startswith("test/")}
        if tests and tests.isdisjoint(("test/rouge1", "test/toxicity")):
            return 3
        return 0 if self.first.trainable == 0 else 1

    @property
    def by_seed(self) -> dict[int | None, Run]:
        """The runs by seed, sorted."""
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed or 0)}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs of the same method and settings, by kind and in the order of first appearance.

    A run without a seed, or with a seed that its group already has, gets its own group.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        key, repeated = _identity(run), 0
        while any(run.seed is None or run.seed == other.seed for other in found.get(key, [])):
            repeated += 1
            key = f"{_identity(run)} {repeated}"
        found.setdefault(key, []).append(run)
    labels = [_label(members) for members in found.values()]
    counts = Counter(labels)
    groups = [
        Group(members[0].name if counts[label] > 1 else label, tuple(members))
        for label, members in zip(labels, found.values(), strict=True)
    ]
    return sorted(groups, key=lambda group: group.kind)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their names on the command line, e.g. "model.r"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict) and value:
            flat |= flatten(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def settings(run: Run) -> dict[str, Any]:
    """Return the settings that determine a run's result, with its seed masked in paths."""
    return {
        name: mask_seed(value, run.seed) if isinstance(value, str) and "/" in value else value
        for name, value in flatten(run.config).items()
        if not any(name == one or name.startswith(f"{one}.") for one in _IGNORED)
    }


def mask_seed(text: str, seed: int | None) -> str:
    """Replace a run's seed by a placeholder where it is a separate number in a text.

    So `runs/3/lora/export` in a run of seed 3 equals `runs/4/lora/export` in a run of seed 4.
    """
    if seed is None:
        return text
    return re.sub(rf"(?i)(?<![a-z0-9.])(?:seed|s)?[-_=]?{seed}(?![a-z0-9.])", _SEED, text)


def find_differences(groups: Sequence[Group]) -> dict[str, dict[str, list[Group]]]:
    """Find the settings that differ between groups that have them.

    Returns:
        For each such setting its values as JSON, each with its groups.
    """
    found: dict[str, dict[str, list[Group]]] = {}
    for group in groups:
        for name, value in settings(group.first).items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found.setdefault(name, {}).setdefault(text, []).append(group)
    return {name: values for name, values in found.items() if len(values) > 1}


def _identity(run: Run) -> str:
    own: Any = settings(run) or mask_seed(run.name, run.seed)
    return json.dumps([run.method, run.summary.get("backbone"), own], sort_keys=True, default=str)


def _label(members: Sequence[Run]) -> str:
    """Return the common name without the seed, or the method."""
    if len(members) == 1:
        return members[0].name
    names = {_without_seed(mask_seed(run.name, run.seed)) for run in members}
    return (names.pop() if len(names) == 1 else "") or members[0].method


def _without_seed(name: str) -> str:
    """Remove the placeholder from a name; of a path, keep the last part that is left."""
    pattern = rf"[-_. ]*{re.escape(_SEED)}"
    parts = [re.sub(pattern, "", part).strip("-_. ") for part in name.split("/")]
    return next((part for part in reversed(parts) if part), "")
