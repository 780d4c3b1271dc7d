"""What every command line that generates has around its work."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from common import exits as command_line
from common import hub
from prediction.runs import read_settings


def parse_over_run(
    arguments: Sequence[str],
    export: Path,
    make_parser: Callable[[dict[str, Any]], ArgumentParser],
    unused: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Parse a command line, the settings of a run standing below those given.

    Args:
        arguments: The command line.
        export: The run's model.
        make_parser: Makes the parser from what the run was tested with.
        unused: What the parser does not know of that.

    Returns:
        The values, objects made.

    Raises:
        ValueError: If a setting is out of range, or the run's are not understood.
    """
    found = read_settings(export)
    if not found:
        logging.getLogger(__name__).info(
            "%s belongs to no run: what is not given is this program's default", export
        )
    try:
        parser = make_parser({name: found[name] for name in found if name not in unused})
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"the settings of the run of {export} are not understood: {error}"
        ) from error
    values: dict[str, Any] = parser.instantiate(parser.parse_args(arguments)).as_dict()
    return values


def run(work: Callable[[Console], None], log: logging.Logger) -> int:
    """Do some work, and turn what goes wrong into one message and an exit code.

    Args:
        work: Is given the console for its progress.
        log: Where messages go.

    Returns:
        Exit code: 0; 2 where something cannot be had or done; 130 where it was interrupted.
    """
    console = Console(stderr=True)
    command_line.start_log()
    command_line.quieten_models()

    def go() -> None:
        if not hub.reachable():
            hub.use_cache_only()
        try:
            work(console)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{error}\nTry a smaller --batch_size; what is written stays"
            ) from error

    stopped = "interrupted; the same command goes on where it broke off"
    return command_line.run(go, log, stopped)
