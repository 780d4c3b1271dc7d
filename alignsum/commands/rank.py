"""Collect people's rankings of completions: draw them, show them on a page, hand them on.

    python feedback.py sample runs/lora --input mini --max_rows 200 --output runs/samples.jsonl
    python feedback.py serve --samples runs/samples.jsonl
    python feedback.py export --samples runs/samples.jsonl --output runs/tasks.json
    python feedback.py import --input exported.json --answers runs/samples.answers.jsonl

Details: docs/ranking.md.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial

from jsonargparse import ArgumentParser

from collecting.exchange import export_tasks, import_answers
from collecting.server import serve
from common.exits import run, start_log

log = logging.getLogger("feedback")

COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve, "export": export_tasks, "import": import_answers,
}  # fmt: skip


def make_parser() -> ArgumentParser:
    """Make the parser of all commands; `sample` reads its own options."""
    parser = ArgumentParser(
        prog="feedback.py", description="Collect people's rankings of completions."
    )
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand(
        "sample", ArgumentParser(), help="Draw completions from the models that runs exported."
    )
    for name, function in COMMANDS.items():
        about, _, _ = (function.__doc__ or "").partition("\n\n    Args:")
        command = ArgumentParser(description=about)
        command.add_function_arguments(function, as_positional=False)
        commands.add_subcommand(name, command, help=about.partition("\n")[0])
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: see :func:`command_line.run`.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    if arguments[:1] == ["sample"]:
        # Not before: torch and transformers take seconds, and the page needs neither.
        from collecting import sample_command

        return sample_command.main(arguments[1:])
    start_log()
    settings = make_parser().parse_args(arguments)
    command = settings["command"]
    return run(partial(COMMANDS[command], **settings[command].as_dict()), log)


if __name__ == "__main__":
    sys.exit(main())
