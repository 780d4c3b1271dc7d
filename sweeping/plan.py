"""The plan of a sweep: named choices on named axes, and what train.py is told for each combination.

commands: [fit, test]        # the default; [test] for a method that trains nothing
axes:
  rank:
    r4: {model.r: 4, model.alpha: 8}
    r16: {model: {r: 16, alpha: 32}}
  rate:
    slow: {model.optimizer.init_args.lr: 1.0e-4}
    fast: [--model.optimizer.init_args.lr, "1e-3"]
exclude:
  - {rank: r16, rate: fast}
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_KEYS = {"commands", "axes", "exclude"}
_COMMANDS = (["fit", "test"], ["test"])
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")

_LONGEST = 200
"""Letters in a folder's name; file systems allow 255 bytes, with what is put before and behind."""

REPORT = "report"
"""Folder of the comparison, beside those of the runs."""


class Combination(NamedTuple):
    """One choice on each axis.

    Attributes:
        name: The choices' names with hyphens between: its run folder.
        choices: Name of the choice by axis.
        arguments: What train.py is told for it.
    """

    name: str
    choices: dict[str, str]
    arguments: list[str]


class Plan(NamedTuple):
    """What a sweep runs.

    Attributes:
        commands: Commands of train.py, in their order.
        combinations: In the order of the file, the last axis varying fastest.
    """

    commands: list[str]
    combinations: list[Combination]


def read_plan(path: Path) -> Plan:
    """Read a sweep file.

    Raises:
        ValueError: If it cannot be read or is not as described above; names all that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"sweep file {path} cannot be read: {error}") from error
    problems = list(_find_problems(content))
    if not problems:
        plan = _combine(content)
        problems = list(_find_clashes(plan.combinations))
    if problems:
        raise ValueError(f"sweep file {path}:\n- " + "\n- ".join(problems))
    return plan


def repeat(plan: Plan, seeds: Sequence[int]) -> Plan:
    """Give a plan with every combination once for each seed, all of the first seed first.

    Raises:
        ValueError: If a seed is there twice, or a choice sets the seed as well.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: each once, got {','.join(map(str, seeds))}")
    combinations = [
        run._replace(
            name=f"{run.name}-seed{seed}",
            choices={**run.choices, "seed": str(seed)},
            arguments=[*run.arguments, f"--seed_everything={seed}"],
        )
        for seed in seeds
        for run in plan.combinations
    ]
    if problems := list(_find_clashes(combinations)):
        raise ValueError("--seeds:\n- " + "\n- ".join(problems))
    return plan._replace(combinations=combinations)


def to_arguments(choice: Any) -> list[str]:
    """Give the arguments of a choice: a list as it is, of a mapping one ``--name=value`` a leaf."""
    if isinstance(choice, list):
        return [str(part) for part in choice]
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in _flatten(choice or {})
    ]


def find_reserved(arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Name the options among some arguments of train.py that are the sweep's own to give.

    A checkpoint may be named where nothing is trained: with a fit, its own would not be tested.
    """
    reserved = {"--run_dir", "--overwrite", "--resume"}
    if "fit" in commands:
        reserved.add("--ckpt_path")
    return [name for argument in arguments if (name := argument.partition("=")[0]) in reserved]


def _flatten(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk to the leaves; a class with its init_args is one, since its parts belong together."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _find_problems(content: Any) -> Iterator[str]:
    axes = content.get("axes") if isinstance(content, dict) else None
    if not isinstance(axes, dict) or not axes:
        yield "it must be a mapping with 'axes', as in configs/sweeps/prompting.yaml"
        return
    if unknown := set(map(str, content)) - _KEYS:
        yield f"unknown entry {', '.join(sorted(unknown))}; it has {', '.join(sorted(_KEYS))}"
    commands = content.get("commands", _COMMANDS[0])
    if commands not in _COMMANDS:
        yield f"commands must be [fit, test] or [test], got {commands}"
        commands = []
    for axis, choices in axes.items():
        if not isinstance(choices, dict) or not choices:
            yield f"axis {axis} must be a mapping of named choices, got {choices}"
            continue
        for name, choice in choices.items():
            for problem in _find_choice_problems(name, choice, commands):
                yield f"axis {axis}, choice {name}: {problem}"
    for entry in _as_list(content.get("exclude")):
        if not isinstance(entry, dict) or not all(
            name in _names(axes.get(axis))
            for axis, value in entry.items()
            for name in _as_list(value)
        ):
            yield f"exclude must be a list of {{axis: choice or choices}} of the above, got {entry}"


def _find_choice_problems(name: Any, choice: Any, commands: Sequence[str]) -> Iterator[str]:
    if isinstance(name, bool) or not _NAME.fullmatch(str(name)):
        yield (
            "its name becomes a folder's; use letters, digits and _.+- (and quotes around a word "
            "such as on or off, which YAML takes for a truth value)"
        )
    if not isinstance(choice, dict | list | None):
        yield f"it must be a mapping of settings or a list of arguments, got {choice!r}"
        return
    for option in find_reserved(to_arguments(choice), commands):
        yield f"{option} is the sweep's own to give"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _names(choices: Any) -> list[Any]:
    return list(choices) if isinstance(choices, dict) else []


def _combine(content: dict[str, Any]) -> Plan:
    axes: dict[str, dict[str, Any]] = {
        str(axis): {str(name): choice for name, choice in choices.items()}
        for axis, choices in content["axes"].items()
    }
    excluded = [
        {str(axis): [str(name) for name in _as_list(value)] for axis, value in entry.items()}
        for entry in _as_list(content.get("exclude"))
    ]
    combinations = []
    for names in itertools.product(*axes.values()):
        choices = dict(zip(axes, names, strict=True))
        if any(all(choices[axis] in entry[axis] for axis in entry) for entry in excluded):
            continue
        arguments = [
            argument
            for axis, name in choices.items()
            for argument in to_arguments(axes[axis][name])
        ]
        combinations.append(Combination("-".join(names), choices, arguments))
    return Plan(content.get("commands", _COMMANDS[0]), combinations)


def _find_clashes(combinations: list[Combination]) -> Iterator[str]:
    """Find what only the product shows: names that meet, and axes that undo each other."""
    if not combinations:
        yield "no combination is left to run"
    seen: set[str] = {REPORT}
    twice: set[str] = set()
    for name, _, arguments in combinations:
        if len(name) > _LONGEST:
            yield f"{name[:40]}... is too long for the name of a folder; shorten its choices' names"
        if name in seen:
            yield f"{name} is the name of two folders; rename a choice"
        seen.add(name)
        settings = [
            argument.partition("=")[0].replace(".init_args.", ".")
            for argument in arguments
            if argument.startswith("--") and not argument.startswith("--config")
        ]
        twice |= {setting for setting in settings if settings.count(setting) > 1}
    for setting in sorted(twice):
        yield f"{setting} is set twice in one combination; the axes would undo each other"
