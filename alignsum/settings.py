"""Read the settings of a command line and its config files, without the libraries."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from alignsum.overlays import SECTION, config_values

BARE = ("resume",)
"""Options that need no value."""


class Missing:
    """Stands for the value of an option that was given none."""


class Setting(NamedTuple):
    """A setting as it was given; where: the option, or the file and the key."""

    name: str
    value: Any
    where: str


def read_values(arguments: Sequence[str], prepared: Sequence[str]) -> dict[str, Any]:
    """Return the last value of each setting by its dotted name.

    Args:
        arguments: The command line as it was typed.
        prepared: The same with config files found and merged.

    Returns:
        The values; that of a bare option is True.
    """
    values = {setting.name: setting.value for setting in read_files(arguments, prepared)}
    for name, value, _ in read_options(prepared):
        values[name] = True if value is None else read_value(value)
    return values


def read_value(given: Any) -> Any:
    """Return what the text of an option means as YAML; a text that is not YAML is itself."""
    try:
        return yaml.safe_load(given) if isinstance(given, str) and given else given
    except yaml.YAMLError:
        return given


def read_files(arguments: Sequence[str], prepared: Sequence[str]) -> Iterator[Setting]:
    """Yield the settings of the config files."""
    names = [value for _, value in config_values(arguments)]
    for name, (_, value) in zip(names, config_values(prepared), strict=True):
        text = value
        if "\n" not in value:
            with open(value, encoding="utf-8") as file:
                text = file.read()
        for key, given in flatten(yaml.safe_load(text)):
            yield Setting(key, given, f"{name}: {key}")


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of each leaf, without ``init_args``."""
    for key, value in content.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        if mappings := list_mappings(value):
            for each in mappings:
                yield from flatten(each, name.rstrip("+"))
        elif key != SECTION:
            yield name.rstrip("+"), value


def list_mappings(value: Any) -> list[dict[str, Any]]:
    """Return a mapping, or those in a list of mappings; of anything else, nothing."""
    items = value if isinstance(value, list) else [value]
    return items if value and all(isinstance(item, dict) for item in items) else []


def read_options(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield the settings on the command line; options without a value have None or Missing."""
    for option, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if not option.startswith("--") or option == "--":
            continue
        option, equals, value = option.partition("=")
        name = option.removeprefix("--").replace(".init_args", "").rstrip("+")
        given: Any = value
        if not equals:
            is_bare = name in BARE or name.endswith(("help", "print_config"))
            given = following if not following.startswith("--") else None if is_bare else Missing
        if list_mappings(content := read_value(given)):
            for key, inner in flatten({name: content}):
                yield Setting(key, inner, f"--{key}")
        elif name != "config":
            yield Setting(name, given, f"--{name}")
