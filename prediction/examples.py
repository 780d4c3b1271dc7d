"""The examples of a few-shot run, before the questions of another file."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from datamodules import sources
from datamodules.dialogsum import DialogSumDataModule
from datamodules.prompts import PromptStyle
from prediction.runs import find_config, read_config


def describe_examples(export: Path, shots: int) -> dict[str, Any]:
    """Say where a run's examples come from: what its data module is made of, in JSON's types.

    Returns:
        The arguments of :class:`DialogSumDataModule`, without a tokenizer.

    Raises:
        ValueError: If there is no run that would say it, or its data cannot be had.
    """
    config = find_config(export)
    if config is None:
        raise ValueError(
            f"shots is {shots}, but {export} belongs to no run whose train split has examples; "
            "name a run, or --shots 0"
        )
    content = read_config(config)
    settings: dict[str, Any] = dict(content["data"]["init_args"])
    if problems := sources.find_problems(settings["source"]):
        raise ValueError("; ".join(problems) + "; --shots 0 asks without examples")
    for name in ("prompt", "batch_size", "eval_batch_size", "max_source_length"):
        settings.pop(name, None)
    return settings | {"shots": shots, "seed": int(content.get("seed_everything") or 0)}


def open_examples(
    arguments: dict[str, Any], tokenizer: Any, prompt: PromptStyle, max_source_length: int
) -> DialogSumDataModule:
    """Make the data module that puts a run's examples before questions.

    Args:
        arguments: Given by :func:`describe_examples`.
        tokenizer: The model's tokenizer.
        prompt: The words around the dialogue.
        max_source_length: Most tokens of a prompt.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DialogSumDataModule, "data")
    more = {"tokenizer": tokenizer.name_or_path, "max_source_length": max_source_length}
    made = {"class_path": "datamodules.DialogSumDataModule", "init_args": arguments | more}
    try:
        data: DialogSumDataModule = parser.instantiate(parser.parse_object({"data": made})).data
    except ArgumentError as error:
        raise ValueError(f"the run's data are not understood: {error}") from error
    data.prompt, data.tokenizer = prompt, tokenizer
    return data
