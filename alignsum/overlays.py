"""Find and merge the config files of a command line, before anything heavy is imported.

A path that does not exist in the working directory is looked up among the configs shipped with the
package. Overlays are config files after the method's own that change only what they name. A change
can depend on the method (a learning rate for a LoRA ruins full fine-tuning), so an overlay may have
a section ``per_model``: the entry for the command's model class is merged over the rest of the
file, the other entries are dropped.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.exits import suggest
from common.run_folder import expand

logger = logging.getLogger(__name__)

SECTION = "per_model"

SHIPPED = Path(__file__).resolve().parents[1]
"""The folder with ``configs/``: the repository, or site-packages."""

SHORT_OPTIONS = {"--lr": "--model.optimizer.init_args.lr", "--seed": "--seed_everything"}

_CONFIG_FLAGS = ("--config", "-c")
_NEVER_NULL = ("model", "data", "trainer", "checkpoint", "toxicity", "rouge", "samples", SECTION)


def expand_short_options(args: Sequence[str]) -> list[str]:
    """Replace ``--lr``, ``--seed`` and a text as ``--data.prompt`` by what they stand for.

    Args:
        args: A command line. ``--data.prompt "Summarize: {dialogue}"`` becomes a ``Template``, as
            does any text that cannot be the name of a class.
    """
    expanded: list[str] = []
    for argument in args:
        option, equals, value = argument.partition("=")
        if not option.startswith("--"):
            option, equals, value = "", "", argument
        is_prompt = "--data.prompt" in (option, *expanded[-1:])
        is_text = bool(set(value) & set(" {}:")) and "class_path" not in value
        if is_prompt and is_text:
            value = json.dumps({"class_path": "Template", "init_args": {"template": value}})
        expanded.append(SHORT_OPTIONS.get(option, option) + equals + value)
    return expanded


def prepare_configs(args: Sequence[str]) -> list[str]:
    """Replace the ``--config`` arguments by files that exist, or by merged YAML text.

    Args:
        args: A command line. A file without ``per_model`` becomes its path, one with it the text
            of the merged settings, which jsonargparse accepts in place of a file.

    Raises:
        ValueError: If a file is missing or not a YAML mapping, or if ``per_model`` has no entry for
            the model class, or no earlier file names that class.
    """
    args = list(args)
    model: str | None = None
    for position, value in config_values(args):
        path = find_config(value)
        content = _read(path)
        section = content.pop(SECTION, None)
        model = _class_of(content) or model
        text = str(path)
        if section is not None:
            chosen = _choose(section, model, value)
            text = yaml.safe_dump(_merge(content, chosen), sort_keys=False)
        flag, equals, _ = args[position].partition("=")
        args[position] = f"{flag}={text}" if equals and flag in _CONFIG_FLAGS else text
    return args


def find_config(value: str) -> Path:
    """Return the path of a config file: as given, or among the shipped configs.

    Raises:
        ValueError: If there is no such file; names the closest shipped config.
    """
    path = expand(value)
    if path.is_file():
        return path
    shipped = SHIPPED / path
    if path.parts[:1] == ("configs",) and shipped.is_file():
        logger.info("Using the shipped config %s", shipped)
        return shipped
    known = sorted(str(file.relative_to(SHIPPED)) for file in (SHIPPED / "configs").rglob("*.yaml"))
    what = " is a folder" if path.is_dir() else ": there is no such file"
    raise ValueError(
        f"--config {value}{what}{suggest(value, known)}; shipped configs: "
        f"{', '.join(list_shipped())}"
    )


def list_shipped() -> list[str]:
    """Return the shipped configs of the methods, without overlays."""
    return sorted(str(file.relative_to(SHIPPED)) for file in (SHIPPED / "configs").glob("*.yaml"))


def first_config(args: Sequence[str]) -> Path | None:
    """Return the first config file on a command line; its name is the run's name."""
    return next((Path(value) for _, value in config_values(args)), None)


def config_values(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each config on a command line with the index of the argument that holds it."""
    for index, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            continue
        if equals:
            yield index, value
        elif index + 1 < len(args):
            yield index + 1, args[index + 1]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the config {path} is not UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(f"the config {path} is not YAML: {text}") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else "is a list or text"
        raise ValueError(f"the config {path} {found}; it has to be a mapping of settings")
    empty = [name for name, value in content.items() if value is None and name in _NEVER_NULL]
    if empty:
        raise ValueError(
            f"the config {path} sets {', '.join(empty)} to null; leave a section out to keep its "
            "defaults"
        )
    return content


def _choose(section: Any, model: str | None, name: str) -> dict[str, Any]:
    """Return the settings that ``per_model`` has for a model class."""
    if model is None:
        raise ValueError(f"{name} is an overlay: put it after the method's own --config")
    if not isinstance(section, dict) or not isinstance(section.get(model), dict | None):
        raise ValueError(
            f"{name}: {SECTION} must map model classes to settings, such as "
            f"`{SECTION}: {{{model}: {{}}}}`"
        )
    if model not in section:
        raise ValueError(
            f"{name}: {SECTION} has no entry for {model}; it has {', '.join(section)}. Add one "
            f"(it may be empty: `{model}: {{}}`)"
        )
    return section[model] or {}


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
