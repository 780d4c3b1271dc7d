"""Shorten the parser's errors, and name the option or class that was probably meant."""

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import yaml

import datamodules
import lightning_modules
from alignsum.overlays import config_values, find_config
from common.exits import suggest

_NONE = "- Expected a <class 'NoneType'>"
_NOISE = ("Does not validate", "- Does not validate", "Subtypes: ", "Errors:", _NONE)
_PACKAGES: dict[str, Any] = {"model": lightning_modules, "data": datamodules}


def explain(message: str, arguments: Sequence[str], parser: Any) -> str:
    """Return jsonargparse's message without its internals, and with suggestions.

    Args:
        message: The error's message.
        arguments: The command line.
        parser: The parser of the command.
    """
    text, _, value = message.partition("\n  Given value type:")
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.strip().startswith(_NOISE)]
    given = value.partition("\n  ")[2]
    lines += [f"  {given}"] if given and "NestedArg(" not in given else []
    return "\n".join([*lines, *find_suggestions(arguments, parser)])


def find_suggestions(arguments: Sequence[str], parser: Any) -> list[str]:
    """Name the closest option or class for each unknown one on a command line."""
    known = {name for name in dict(parser.get_defaults()) if name.split(".")[0] not in _PACKAGES}
    found = []
    for section, package in _PACKAGES.items():
        name = find_class(arguments, section)
        kind = getattr(package, name.rpartition(".")[2], None)
        known |= {f"{section}.{parameter}" for parameter in find_parameters(kind)}
        if kind is None and name and "." not in name:
            names = sorted(package.__all__)
            found.append(f"{section}: {name} is not one of {', '.join(names)}")
            found[-1] += suggest(name, names)
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for option in options:
        name = option.removeprefix("--").replace(".init_args", "").rstrip("+")
        top = ".".join(name.split(".")[:2])
        if not known & {top, name} and name not in ("config", *_PACKAGES):
            hint = suggest(top, known)
            found += [f"{option}: there is no such setting{hint}"] if hint else []
    return found


def find_parameters(kind: type | None) -> set[str]:
    """Return the names of a class's constructor arguments, its base classes' included."""
    classes = inspect.getmro(kind) if kind else ()
    return {
        name
        for each in classes
        if "__init__" in vars(each)
        for name in inspect.signature(vars(each)["__init__"]).parameters
    }


def find_class(arguments: Sequence[str], section: str) -> str:
    """Return the class path that a command line gives to a section, or ""."""
    found = ""
    for _, value in config_values(arguments):
        part = yaml.safe_load(find_config(value).read_text(encoding="utf-8")).get(section)
        found = (part.get("class_path") if isinstance(part, dict) else part) or found
    for option, value in pairwise(arguments):
        found = value if option in (f"--{section}", f"--{section}.class_path") else found
    return str(found)
