"""Summaries for a file of dialogues by the model that a run exported.

    python predict.py runs/lora --input dialogues.jsonl --output summaries.jsonl
    python predict.py runs/lora --input chats.txt --output summaries.jsonl --num_beams 4
    zcat dialogues.jsonl.gz | python predict.py runs/lora --input - --output - > summaries.jsonl

Prompt, decoding and the like are the run's own unless given. Interrupted, the same command goes on
where it broke off. Details: docs/predict.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from common.versions import show_command
from lightning_modules.summarization import Decoding
from prediction.command import parse_over_run, run
from prediction.job import predict
from prediction.runs import find_export
from prediction.settings import Settings

log = logging.getLogger("predict")


def make_parser(defaults: dict[str, Any]) -> ArgumentParser:
    """Make the parser of the command line.

    Args:
        defaults: What the run was tested with, in place of the defaults of the classes.
    """
    parser = ArgumentParser(
        prog="predict.py",
        description="Summarise a file of dialogues. Defaults of prompt, lengths, batch size, "
        "precision and decoding are those of the run's config.yaml, where it has one.",
    )
    parser.add_argument(
        "run", help="run folder, its export, or any model folder in Hugging Face or PEFT format"
    )
    parser.add_class_arguments(Settings)
    parser.add_class_arguments(Decoding)
    # Spelled out: the help would show where in memory the default object lies.
    parser.set_defaults({"prompt": "Instruction"} | defaults)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Path, Settings, Decoding]:
    """Parse a command line, the settings of its run standing below those given.

    Raises:
        ValueError: If a setting is out of range, or the run's are not understood.
    """
    export = find_export(make_parser({}).parse_args(arguments).run)
    values = parse_over_run(arguments, export, make_parser)
    decoding = Decoding(**{field.name: values.pop(field.name) for field in fields(Decoding)})
    del values["run"]
    return export, Settings(**values), decoding


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0; 2 where something cannot be had or done; 130 where it was interrupted.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    command = show_command(["python", "predict.py", *arguments])
    return run(lambda console: predict(*parse(arguments), console, command), log)


if __name__ == "__main__":
    sys.exit(main())
