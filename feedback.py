"""Collect people's rankings of completions: draw them, show them on a page, hand them on.

    python feedback.py sample runs/lora --input mini --max_rows 200 --output runs/samples.jsonl
    python feedback.py serve --samples runs/samples.jsonl
    python feedback.py export --samples runs/samples.jsonl --output runs/tasks.json
    python feedback.py import --input exported.json --answers runs/samples.answers.jsonl

Details: docs/feedback.md.
"""

import logging
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from collecting.exchange import export_tasks, import_answers
from collecting.server import serve

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
        Exit code: 0; 2 where something cannot be had or done; 130 where it was interrupted.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    if arguments[:1] == ["sample"]:
        # Not before: torch and transformers take seconds, and the page needs neither.
        from collecting import sample_command

        return sample_command.main(arguments[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = make_parser().parse_args(arguments)
    command = settings["command"]
    try:
        COMMANDS[command](**settings[command].as_dict())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
