"""Sweep files: which settings of train.py a sweep tries.

    commands: [fit, test]      # the default; [test] for a method that trains nothing
    sampler: grid              # the default: every combination; or random, or tpe
    trials: 20                 # runs of random and tpe
    metric: val/rouge1         # objective of a trial: the best value in its metrics.csv
    direction: maximize        # or minimize
    axes:                      # named choices, each a mapping of train.py's settings
      rank:
        r4: {model.r: 4, model.alpha: 8}
        r16: {model: {r: 16, alpha: 32}}
    ranges:                    # numbers to draw, for random and tpe
      model.optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}

All keys but ``axes`` (or ``ranges``) have defaults.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

Params = Mapping[str, Any]
"""A trial: the name of a choice on each axis, a number for each range, and perhaps ``seed``."""

_CHOICE = re.compile(r"[A-Za-z0-9][\w.+-]{0,40}", re.ASCII)


@dataclass
class Range:
    """Numbers that a sampler may draw; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool = False


@dataclass
class Plan:
    """A sweep file; the module's docstring explains its keys.

    Raises:
        ValueError: If the plan is invalid; lists every problem.
    """

    axes: dict[str, dict[Any, dict[str, Any] | None]] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    commands: list[Literal["fit", "test"]] = field(default_factory=lambda: ["fit", "test"])
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20
    metric: str = "val/rouge1"
    direction: Literal["maximize", "minimize"] = "maximize"
    choices: dict[str, dict[str, dict[str, Any]]] = field(init=False)
    """The axes with flat settings and names that are texts: YAML reads 4 as a number."""

    def __post_init__(self) -> None:
        self.choices = {
            axis: {str(name): flatten(choice or {}) for name, choice in choices.items()}
            for axis, choices in self.axes.items()
        }
        problems = [] if self.axes or self.ranges else ["it has neither axes nor ranges"]
        if self.commands not in (["fit", "test"], ["test"]):
            problems.append(f"commands must be [fit, test] or [test], got {self.commands}")
        if self.ranges and self.sampler == "grid":
            problems.append("a grid cannot enumerate ranges; use random or tpe")
        for axis, choices in self.choices.items():
            problems += [
                f"axis {axis}: {name!r} cannot name a folder; use letters, digits and _.+-"
                for name in choices
                if not _CHOICE.fullmatch(name)
            ]
        names = [*self.ranges]
        for choices in self.choices.values():
            names += {plain(name) for settings in choices.values() for name in settings}
        problems += [f"two axes set {name}" for name in sorted(set(names)) if names.count(name) > 1]
        if own := find_reserved([f"--{name}" for name in names], self.commands):
            problems.append(f"the sweep itself sets {', '.join(own)}")
        if problems:
            raise ValueError("; ".join(problems))
        self.sets_seed = "seed_everything" in names

    def list_grid(self, seeds: Sequence[int] = ()) -> list[Params]:
        """List the trials of a grid, seed by seed; the last axis varies fastest.

        Raises:
            ValueError: If seeds are given, and cannot be.
        """
        if seeds and (self.sampler != "grid" or self.sets_seed):
            raise ValueError("--seeds needs a grid that does not set seed_everything itself")
        product = itertools.product(*self.choices.values())
        grid = [dict(zip(self.choices, names, strict=True)) for names in product]
        return [params | {"seed": seed} for seed in seeds for params in grid] if seeds else [*grid]

    def list_examples(self) -> list[Params]:
        """List a few trials in which every choice, and both ends of a range, occur."""
        values: dict[str, list[Any]] = {
            axis: list(choices) for axis, choices in self.choices.items()
        }
        values |= {name: [each.low, each.high] for name, each in self.ranges.items()}
        count = max(map(len, values.values()))
        return [{axis: each[i % len(each)] for axis, each in values.items()} for i in range(count)]

    def make_space(self) -> dict[str, Any]:
        """Return Optuna's distribution of each axis and range."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        space = {axis: CategoricalDistribution(list(names)) for axis, names in self.choices.items()}
        for name, each in self.ranges.items():
            whole = isinstance(each.low, int) and isinstance(each.high, int)
            make = IntDistribution if whole else FloatDistribution
            space[name] = make(each.low, each.high, log=each.log)
        return space

    def name(self, params: Params) -> str:
        """Name the run of a trial after its choices, numbers and seed."""
        parts = [params[axis] for axis in self.choices]
        parts += [f"{name.rpartition('.')[2]}{to_text(params[name])}" for name in self.ranges]
        return "-".join(parts + ([f"seed{params['seed']}"] if "seed" in params else []))

    def arguments(self, params: Params) -> list[str]:
        """Translate a trial into arguments of train.py."""
        settings = {"seed_everything": params["seed"]} if "seed" in params else {}
        for axis, choices in self.choices.items():
            settings |= choices[params[axis]]
        settings |= {name: to_text(params[name]) for name in self.ranges}
        return [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in settings.items()
        ]


def read_plan(path: Path) -> Plan:
    """Read a sweep file.

    Raises:
        ValueError: If it cannot be read, or is invalid.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Plan)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it must be a mapping, as configs/sweeps/lora_ranks.yaml is")
        values = parser.parse_object(content).as_dict()
        ranges = {name: Range(**each) for name, each in values.pop("ranges").items()}
        return Plan(**values, ranges=ranges)
    except (OSError, ValueError, yaml.YAMLError, ArgumentError) as error:
        raise ValueError(f"sweep file {path}: {error}") from error


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; a class_path keeps its init_args."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def plain(setting: str) -> str:
    """Write a setting in its short form, so that two names of one setting are equal."""
    return setting.replace(".init_args.", ".")


def to_text(value: float) -> str:
    """Write a drawn number, with three digits if it is no whole one."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def find_reserved(arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Return those among some arguments of train.py that the sweep itself sets."""
    reserved = {"--run_dir", "--overwrite", "--resume"}
    if "fit" in commands:
        reserved.add("--ckpt_path")  # the test must read the checkpoint of its own fit
    return [name for argument in arguments if (name := argument.partition("=")[0]) in reserved]
