"""Check the names and plain values of options before torch and Lightning are imported.

What cannot be decided from source files is left to the parser: classes of other packages, nested
types, and options of Lightning's loggers.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import yaml

import datamodules
from alignsum.overlays import SHIPPED, list_shipped, prepare_configs
from alignsum.settings import Missing, Setting, read_files, read_options, read_value
from alignsum.signatures import (
    PACKAGES,
    SCALARS,
    Parameter,
    find_parameters,
    find_subclasses,
    read_choices,
    read_classes,
    read_public_names,
)
from datamodules.prompts import Template

SECTIONS = {
    "trainer": "Trainer",
    "rouge": "RougeCallback",
    "toxicity": "ToxicityCallback",
    "samples": "SampleTexts",
    "monitor": "PPOMonitor",
    "checkpoint": "RunCheckpoint",
}
"""Sections of settings with a fixed class; ``model`` and ``data`` choose theirs."""

PLAIN = (
    "run_dir", "resume", "overwrite", "validate_first", "seed_everything", "config", "ckpt_path",
    "print_config", "verbose", "weights_only", "return_predictions", "help",
)  # fmt: skip
"""Options outside of all sections."""

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.precision": (
        "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "16", "bf16",
        "64", "transformer-engine", "transformer-engine-float16",
    ),
}  # fmt: skip
"""Choices that Lightning's signatures give a private name."""

OTHER_NAMES = {
    "output_dir": "--run_dir", "out": "--run_dir", "save_dir": "--run_dir",
    "learning_rate": "--lr", "lr": "--lr", "epochs": "--trainer.max_epochs",
    "gpus": "--trainer.devices", "device": "--trainer.accelerator", "dataset": "--data.source",
    "model_name": "--model.backbone", "model_name_or_path": "--model.backbone",
    "checkpoint": "--ckpt_path",
}  # fmt: skip
"""Names that other tools use, and ours."""

LEAST = {
    "r": 1, "batch_size": 1, "eval_batch_size": 1, "shots": 0, "max_new_tokens": 1,
    "minibatch_size": 1, "kl_coef": 0, "lr": 0, "weight_decay": 0, "eps": 0,
    "accumulate_grad_batches": 1, "gradient_clip_val": 0, "check_val_every_n_epoch": 1,
}  # fmt: skip
"""Lowest values of the numbers that people mistype most; constructors check all numbers."""

DATA = [name for name in datamodules.__all__ if name.endswith("DataModule")]

MOST = 3
"""Problems that are shown at once."""


def prepare(arguments: Sequence[str]) -> list[str]:
    """Find and merge the config files of a command line, and check its settings.

    Raises:
        ValueError: If a file cannot be used, or a setting is unknown or of a wrong type.
    """
    prepared = prepare_configs(arguments)
    given = [option.partition("=")[0] for option in prepared]
    has_method = any(option in ("--config", "-c", "--model") for option in given)
    if not has_method and not only_asks(arguments):
        raise ValueError(
            f"{arguments[0]} needs a method: add --config with one of {', '.join(list_shipped())}"
        )
    if problems := find_option_problems(arguments, prepared):
        raise ValueError("\n".join(problems))
    return prepared


def only_asks(arguments: Sequence[str]) -> bool:
    """Return whether a command line only asks for help or for the settings."""
    given = [argument.partition("=")[0] for argument in arguments]
    return any(name.endswith(("help", "print_config")) or name == "-h" for name in given)


def find_option_problems(arguments: Sequence[str], prepared: Sequence[str]) -> list[str]:
    """List unknown options and classes, and values of a wrong type.

    Args:
        arguments: The command line as it was typed.
        prepared: The same with config files found and merged.

    Returns:
        Nothing, or at most five lines: the problems, and where the full help is.
    """
    settings = [*read_files(arguments, prepared), *read_options(prepared)]
    chosen: dict[str, str] = {}
    found = list(find_stray(arguments))
    for setting in settings:
        if problem := find_contradiction(setting, chosen):
            return [problem]
        # A later class drops the settings of an earlier one, so each is checked with its own.
        chosen |= choose_class(setting)
        if problem := find_problem(setting, chosen):
            found.append(problem)
    found = list(dict.fromkeys(found))
    if not found:
        return []
    classes = [(name, chosen.get(name, "")) for name in ("model", "data")]
    helps = [f"--{name}.help {kind}" for name, kind in classes if kind in read_classes()]
    more = [f"(and {len(found) - MOST} more)"] if len(found) > MOST else []
    return [
        *found[:MOST],
        *more,
        f"all options: python train.py fit {'; '.join(['--help', *helps])}",
    ]


def find_contradiction(setting: Setting, chosen: Mapping[str, str]) -> str | None:
    """Explain that an option names another of our methods than the files, or return None.

    The settings of the files' method would stay: learning rates, ranks and epochs that suit it.
    """
    ours, name = read_public_names("lightning_modules"), setting.name.removesuffix(".class_path")
    before, after = chosen.get("model"), str(setting.value).rpartition(".")[2]
    if name != "model" or before in (None, after) or before not in ours or after not in ours:
        return None
    texts = {name: (SHIPPED / name).read_text(encoding="utf-8") for name in list_shipped()}
    own = next((name for name, text in texts.items() if f"class_path: {after}\n" in text), "")
    return f"{setting.where} {after}: the config before it is for {before}; use --config {own}"


def find_stray(arguments: Sequence[str]) -> Iterator[str]:
    """Explain each argument after the command that is neither an option nor a value."""
    for before, argument in pairwise(arguments):
        if (before.startswith("-") and "=" not in before) or argument.startswith("--"):
            continue
        if argument.startswith("-"):
            if argument.partition("=")[0] not in ("-c", "-h"):
                yield f"{argument}: options start with two dashes: -{argument}"
        else:
            hint = f"; did you mean --config {argument}?" if argument.endswith(".yaml") else ""
            yield f"{argument} belongs to no option{hint}"


def choose_class(setting: Setting) -> dict[str, str]:
    """Return the section or parameter whose class a setting names, with the class's short name."""
    name, value, _ = setting
    if not isinstance(value, str):
        return {}
    package, _, short = value.rpartition(".")
    is_path = name.endswith(".class_path") or name in ("model", "data")
    is_foreign = package and all(map(str.isidentifier, value.split(".")))
    if is_foreign and value.partition(".")[0] not in (*PACKAGES, "lightning"):
        short = value  # not to be confused with a class of ours
    is_class = short and (is_path or is_foreign or short in read_classes())
    return {name.removesuffix(".class_path"): short} if is_class else {}


def find_problem(setting: Setting, chosen: Mapping[str, str]) -> str | None:
    """Explain what is wrong with a setting, or return None."""
    section, _, rest = setting.name.partition(".")
    if setting.value is Missing:
        return f"{setting.where} needs a value"
    if setting.name == "trainer.fast_dev_run" and yaml.safe_load(str(setting.value)):
        return (
            f"{setting.where} writes no checkpoint, log or config; for a few batches of everything "
            "add --config configs/overlays/debug.yaml"
        )
    if setting.name == "trainer.val_check_interval" and str(setting.value) in ("0", "0.0"):
        return (
            f"{setting.where} must be above 0; to skip validation set trainer.limit_val_batches "
            "to 0"
        )
    if setting.name == "data.prompt.template":
        try:
            Template(str(setting.value))
        except ValueError as error:
            return f"{setting.where}: {error}"
    if section in ("model", "data"):
        if not rest or rest == "class_path":
            models = read_public_names("lightning_modules")
            return find_class_problem(setting, models if section == "model" else DATA)
        if section not in chosen:
            return None
        return follow(setting, chosen[section], section, rest.split("."), chosen)
    if section in SECTIONS and rest:
        return follow(setting, SECTIONS[section], section, rest.split("."), chosen)
    if section == "seed_everything":
        return find_value_problem(setting, Parameter(frozenset({"int"}), (), "42"))
    if section in PLAIN or section in SECTIONS:
        return None
    return describe_unknown(setting, chosen)


def follow(
    setting: Setting, kind: str, path: str, parts: Sequence[str], chosen: Mapping[str, str]
) -> str | None:
    """Check the part of a name that belongs to a class, then the parts below it."""
    name, *below = parts
    parameters = find_parameters(kind)
    if parameters is None or name in ("class_path", "help", "dict_kwargs"):
        return None
    if name not in parameters:
        return describe_unknown(setting, chosen)
    parameter, path = parameters[name], f"{path}.{name}"
    kinds = [each for each in parameter.types if each in read_classes()]
    if "OptimizerCallable" in parameter.types and below in (["lr"], ["weight_decay"], ["eps"]):
        return find_value_problem(setting, Parameter(frozenset({"float"}), (), "1e-4"))
    if below and below != ["class_path"]:
        if not kinds or below[0] == "dict_kwargs":
            return None
        return follow(setting, chosen.get(path, kinds[0]), path, below, chosen)
    if kinds and not all(read_classes()[each].is_dataclass for each in kinds):
        if "bool" in parameter.types and str(setting.value).lower() in ("true", "false"):
            return None
        return find_class_problem(setting, [n for each in kinds for n in find_subclasses(each)])
    if parameter.types == {"OptimizerCallable"}:
        return find_class_problem(setting, read_public_names("torch", "optim"))
    is_nested = path.count(".") > 1 and not read_classes()[kind].is_dataclass
    if is_nested and setting.where.startswith("--") and str(setting.value) in ("null", "None"):
        # jsonargparse would pass the text "None" on to a class inside a class.
        return (
            f"{setting.where}: a null inside a class cannot be given on the command line; leave it "
            f"out, or add --config with a file that sets it: {setting.name}"
        )
    return find_value_problem(setting, parameter)


def find_class_problem(setting: Setting, known: Sequence[str]) -> str | None:
    """Explain that a short class name is unknown, or return None."""
    value = setting.value
    if not isinstance(value, str) or not value.isidentifier() or value in known or not known:
        return None
    if value in ("null", "None"):
        return None
    close = difflib.get_close_matches(value.lower(), [each.lower() for each in known], 1)
    hint = "".join(f" (did you mean {k}?)" for k in known if [k.lower()] == close)
    names = f"; classes: {', '.join(known)}" if len(known) <= 16 else ""
    return f"{setting.where}: there is no class {value}{hint}{names}"


def find_value_problem(setting: Setting, parameter: Parameter) -> str | None:
    """Explain that a plain value has the wrong type, or return None."""
    value, types = setting.value, parameter.types
    if value in ("none", "None") and "None" in types:
        return f"{setting.where}: write null for {value}"
    choices = CHOICES.get(setting.name, parameter.choices)
    choices += tuple(each for name in types for each in read_choices().get(name, ()))
    types = frozenset({"None"}) if setting.name in CHOICES else types - read_choices().keys()
    is_text = types <= SCALARS and "str" in types
    if not is_text and str(value)[:1] in ("{", "[") and isinstance(read_value(value), str):
        return f"{setting.where}: {value} is not valid YAML; is a bracket or a quote missing?"
    if isinstance(value, dict | list) or not types <= SCALARS or "str" in types:
        return None
    if value is None or str(value).lower() in ("null", "none"):
        return None
    text = str(value)
    fits = (
        text in choices
        or ("bool" in types and text.lower() in ("true", "false", "yes", "no", "0", "1"))
        or ("int" in types and is_number(text) and float(text).is_integer())
        or ("float" in types and is_number(text))
    )
    if fits:
        least = LEAST.get(setting.name.rpartition(".")[2])
        is_low = least is not None and is_number(text) and float(text) < least
        return f"{setting.where} must be {least} or more, got {text}" if is_low else None
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "None": "null"}
    wanted = [*choices, *(names[each] for each in sorted(types - {"None"}))]
    example = parameter.default if parameter.default not in ("", "None") else wanted[0]
    example = {"a whole number": "3", "a number": "0.1", "true or false": "true"}.get(
        example, example
    )
    option = f"--{setting.name} {example.strip(chr(39))}"
    return f"{setting.where} must be {' or '.join(wanted)}, got {text!r}; for example {option}"


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def describe_unknown(setting: Setting, chosen: Mapping[str, str]) -> str:
    """Say that there is no such setting, and which one was probably meant."""
    known = list_names(chosen)
    close = OTHER_NAMES.get(setting.name.rpartition(".")[2], "")
    if not close:
        last = setting.name.rpartition(".")[2]
        names = [each for each in known if each.rpartition(".")[2] == last]
        names += difflib.get_close_matches(setting.name, known, 1, 0.75)
        lasts = {each.rpartition(".")[2]: each for each in reversed(known)}
        names += [lasts[each] for each in difflib.get_close_matches(last, lasts, 1, 0.7)]
        close = f"--{names[0]}" if names else ""
    default = known.get(close.removeprefix("--"), "").strip("'")
    shown = default not in ("", "None") and "(" not in default
    example = f", for example {close} {default}" if shown else ""
    hint = f" (did you mean {close}{example}?)" if close else ""
    return f"{setting.where}: there is no such setting{hint}"


def list_names(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the names of all settings for the chosen classes, with their defaults."""
    found = dict.fromkeys(PLAIN, "")
    for section, kind in {**SECTIONS, **{k: v for k, v in chosen.items() if "." not in k}}.items():
        for name, parameter in (find_parameters(kind) or {}).items():
            found[f"{section}.{name}"] = parameter.default
            path = f"{section}.{name}"
            for each in parameter.types & read_classes().keys():
                for inner, below in (find_parameters(chosen.get(path, each)) or {}).items():
                    found[f"{path}.{inner}"] = below.default
    return found
