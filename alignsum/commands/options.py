"""What the commands share: a command line made from a function, and reading of run folders."""

import argparse
import logging
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from alignsum.option_errors import explain
from common.exits import run, start_log, suggest

if TYPE_CHECKING:
    from reporting.runs import Run

log = logging.getLogger("alignsum")


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Answer a wrong command line with one message instead of a usage text."""
    known = {word.strip("[],.:") for word in parser.format_help().split()}
    options = [word.strip(":") for word in message.split() if word.startswith("--")]
    hint = "".join(suggest(each, known) for each in options if each not in known)
    sys.stderr.write(f"error: {explain(message)}{hint}\nall options: {parser.prog} --help\n")
    sys.exit(2)


class PlainParser(argparse.ArgumentParser):
    """A parser of the standard library."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        refuse(self, message)


class CommandParser(ArgumentParser):
    """A parser of jsonargparse, which checks types."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit."""
        refuse(self, message)


def make_module_parser(command: str, text: str | None) -> CommandParser:
    """Create a parser that is described by the first line of its module's docstring."""
    return CommandParser(
        prog=f"python -m alignsum {command}", description=(text or "").partition("\n")[0]
    )


def make_parser(command: str, description: str, example: str = "") -> argparse.ArgumentParser:
    """Create a parser whose help shows an example and keeps line breaks."""
    return PlainParser(
        prog=f"python -m alignsum {command}", description=description, epilog=example,
        formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the line breaks of descriptions."""


def make_function_parser(
    command: str, function: Callable[..., int | None], runs: str = "", skip: Collection[str] = ()
) -> ArgumentParser:
    """Make a parser from a function: options from its signature, help from its docstring.

    Args:
        command: The command's name.
        function: Its parameters become options.
        runs: Help of the positional arguments, if the parameter `runs` takes them.
        skip: Parameters that the caller adds.
    """
    text = (function.__doc__ or "").partition("\n\n    Args:")[0].replace("\n    ", "\n")
    parser = CommandParser(
        prog=f"python -m alignsum {command}", description=text, formatter_class=HelpFormatter
    )
    if runs:
        parser.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    parser.add_function_arguments(function, as_positional=False, skip={"runs", *skip})
    return parser


def run_command(
    command: str, function: Callable[..., int | None], args: Sequence[str], runs: str = ""
) -> int:
    """Parse a command line and call its function; returns the exit code (see common/exits.py).

    Args:
        command: The command's name.
        function: What it does; see :func:`make_function_parser`.
        args: Arguments after the command's name.
        runs: See :func:`make_function_parser`.
    """
    settings = make_function_parser(command, function, runs).parse_args(list(args)).as_dict()
    start_log()
    return run(lambda: function(**settings), logging.getLogger(command))


def split_names(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_runs(
    paths: Sequence[Path], check: Callable[["Run"], None] = lambda _: None
) -> tuple[list["Run"], list[str]]:
    """Read run folders and log what cannot be used.

    Args:
        paths: The folders.
        check: Raises ValueError for a run that the command cannot use.

    Returns:
        The usable runs, and a sentence about each folder or file that could not be used.

    Raises:
        ValueError: No run can be used.
    """
    from reporting import runs as work

    usable = []
    found, problems = work.read_runs(paths)
    for each in found:
        try:
            check(each)
            usable.append(each)
        except ValueError as error:
            problems.append(f"{each.path}: {error}")
    for problem in problems:
        log.error("%s", problem)
    if not usable:
        raise ValueError("none of the folders is a run that can be shown.")
    return usable, problems
