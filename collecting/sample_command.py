"""The command line of ``feedback.py sample``."""

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from collecting.sampling import Run, SampleSettings, sample
from common.versions import show_command
from lightning_modules.summarization import Decoding
from prediction.command import parse_over_run, run
from prediction.runs import find_export

log = logging.getLogger(__name__)

_NOT_SAMPLING = frozenset({"do_sample", "num_beams", "length_penalty", "early_stopping"})
"""Of ``Decoding``: what is settled here, or of beams."""


def make_parser(defaults: dict[str, Any]) -> ArgumentParser:
    """Make the parser of the command line.

    Args:
        defaults: What a run was tested with, in place of the defaults of the classes.
    """
    parser = ArgumentParser(
        prog="feedback.py sample",
        description="Draw several different completions of each dialogue from the models that runs "
        "exported. Defaults of prompt, lengths, batch size and precision are each run's own.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run folders, their exports, or any model folders in Hugging Face or PEFT format",
    )  # fmt: skip
    parser.add_class_arguments(SampleSettings, skip={"keep_dialogue"})
    parser.add_class_arguments(Decoding, skip=set(_NOT_SAMPLING))
    # Spelled out: the help would show where in memory the default object lies.
    parser.set_defaults({"prompt": "Instruction"} | defaults)
    return parser


def parse(arguments: Sequence[str]) -> list[Run]:
    """Parse a command line, once for each run, whose settings stand below those given.

    Raises:
        ValueError: If a setting is out of range, a run is named twice, or its settings are not
            understood.
    """
    given = make_parser({}).parse_args(arguments).runs
    exports = [find_export(name) for name in given]
    if len(set(exports)) < len(exports):
        raise ValueError(f"a run is named twice: {', '.join(given)}")
    names = [(path.parent if path.name == "export" else path).resolve().name for path in exports]
    if len(set(names)) < len(names):
        names = list(given)
    return [_parse(arguments, name, export) for name, export in zip(names, exports, strict=True)]


def _parse(arguments: Sequence[str], name: str, export: Path) -> Run:
    values = parse_over_run(arguments, export, make_parser, _NOT_SAMPLING)
    del values["runs"]
    taken = {field.name for field in fields(Decoding)} - _NOT_SAMPLING
    decoding = Decoding(do_sample=True, **{key: values.pop(key) for key in taken})
    return Run(name, export, SampleSettings(**values), decoding)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    command = show_command(["python", "feedback.py", "sample", *arguments])
    return run(lambda console: sample(parse(arguments), console, command), log)
