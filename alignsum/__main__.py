"""Run a command of alignsum: ``python -m alignsum COMMAND --help`` describes each."""

import importlib
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from jsonargparse import ArgumentParser

from common.exits import run, start_log

COMMANDS = {
    "demo": "train, test and compare every method on the embedded miniature",
    "compare": "compare runs: a report page, tables and charts",
    "score": "score a file of predictions against references",
    "baselines": "score the rows that no model produces: lead-3 and humans",
    "toxicity": "compare the toxicity of a run's summaries before and after",
    "frontier": "draw reward against KL over the runs of a sweep",
    "predict": "summarize the dialogues of a file with a run",
    "merge": "merge an adapter into its backbone",
    "rank": "collect people's rankings of completions",
    "sweep": "run a config over a grid of settings",
}
"""Name and purpose of each module of `alignsum.commands`."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0, or 2 if the command could not be run.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    name = arguments[0] if arguments else "--help"
    if name not in COMMANDS:
        lines = [f"  {each:<10} {purpose}" for each, purpose in COMMANDS.items()]
        text = "\n".join(["usage: python -m alignsum COMMAND [OPTIONS]", "", *lines, ""])
        wanted_help = name in ("-h", "--help")
        (sys.stdout if wanted_help else sys.stderr).write(text)
        return 0 if wanted_help else 2
    module: Any = importlib.import_module(f"alignsum.commands.{name}")
    if hasattr(module, "main"):
        return int(module.main(arguments[1:]) or 0)
    function = getattr(module, name)
    parser = ArgumentParser(
        prog=f"alignsum {name}", description=(function.__doc__ or "").partition("\n\n    Args:")[0]
    )
    module.add_arguments(parser)
    start_log()
    settings = parser.parse_args(arguments[1:]).as_dict()
    return run(partial(function, **settings), logging.getLogger(name))


if __name__ == "__main__":
    sys.exit(main())
