"""Overlays: small config files behind a method's own, that change only what they name.

What an overlay changes can depend on the method: a learning rate that suits a LoRA ruins a full
fine-tuning. So an overlay may have a section ``per_model``, by class name; the part for the class
of the command at hand is merged over the rest of the file, and the others are left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

SECTION = "per_model"

_CONFIG_FLAGS = ("--config", "-c")


def choose_sections(args: Sequence[str]) -> list[str]:
    """Rewrite the ``--config`` arguments whose files have a section for each model class.

    Args:
        args: A command line. A file without the section stays as it is; one with it becomes the
            text of its merged content, which jsonargparse takes in a file's place.

    Raises:
        ValueError: If the section does not name the class of this command, or no file before it
            says what that class is.
    """
    args = list(args)
    model: str | None = None
    for position, value in config_values(args):
        content = _read(value)
        section = content.pop(SECTION, None)
        model = _class_of(content) or model
        if section is None:
            continue
        if model is None:
            raise ValueError(f"{value} is an overlay: name it behind the method's own --config")
        if not isinstance(section, dict) or not isinstance(section.get(model), dict | None):
            raise ValueError(
                f"{value}: {SECTION} has to hold settings by the name of a model's class, such as "
                f"`{SECTION}: {{{model}: {{}}}}`"
            )
        if model not in section:
            raise ValueError(
                f"{value}: {SECTION} has no entry for {model}; it has {', '.join(section)}. "
                f"Add one (it may be empty: `{model}: {{}}`)"
            )
        merged = _merge(content, section[model] or {})
        text = yaml.safe_dump(merged, sort_keys=False)
        flag = args[position].partition("=")[0]
        args[position] = f"{flag}={text}" if "=" in args[position][: len(flag) + 1] else text
    return args


def first_config(args: Sequence[str]) -> Path | None:
    """Give the first config file on a command line: its name is the run's name."""
    for _, value in config_values(list(args)):
        if "\n" not in value:
            return Path(value)
    return None


def config_values(args: list[str]) -> Iterator[tuple[int, str]]:
    """Find the config values of a command line, with the place of the argument that holds them."""
    for place, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            continue
        if equals:
            yield place, value
        elif place + 1 < len(args):
            yield place + 1, args[place + 1]


def _read(value: str) -> dict[str, Any]:
    """Read a config file; a file that is not there is left to jsonargparse, which says so.

    Raises:
        ValueError: If it holds no settings.
    """
    if "\n" in value or not Path(value).is_file():
        return {}
    try:
        content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the config {value} is not UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the config {value} is no YAML: {error}") from error
    if not isinstance(content, dict):
        found = "is empty, and" if content is None else "is a list or text, and"
        raise ValueError(f"the config {value} {found} has to be a mapping of settings")
    if list(content.values()) == [None]:  # which jsonargparse takes for a text
        raise ValueError(
            f"the config {value} has nothing but {', '.join(content)}, without a value"
        )
    return content


def find_changes(path: Path, text: str) -> str:
    """Say which settings of a saved configuration are others in a new one; empty where none is."""
    try:
        before = dict(_flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{path} cannot be read ({error})"
    now = dict(_flatten(yaml.safe_load(text)))
    return "; ".join(
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name) != now.get(name)
    )


def _flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk to the leaves of nested settings; a list is one."""
    if not isinstance(settings, dict) or not settings:
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))


def _class_of(content: dict[str, Any]) -> str | None:
    model = content.get("model")
    name = model.get("class_path") if isinstance(model, dict) else model
    return str(name).rsplit(".", 1)[-1] if name else None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged
