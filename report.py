"""The command line for results: score files of predictions, compare and examine runs.

python report.py compare runs/lora runs/full_ft --out runs/report
python report.py toxicity runs/ppo --out runs/report --top 20
python report.py frontier runs/sweep_ppo_betas --out runs/frontier
python report.py score --predictions out.txt --references ref.txt --out scores.json
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from jsonargparse import ArgumentParser

from command_line import run, start_log

COMMANDS = ("compare", "toxicity", "frontier", "score")
"""Modules of `reporting.commands`: a function of its own name, and one that adds its options."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: see :func:`command_line.run`; 2 where nothing can be shown, or be written.
    """
    start_log()
    args = sys.argv[1:] if args is None else args
    parser = ArgumentParser(
        prog="report.py", description="Score files of predictions; compare and examine runs."
    )
    commands = parser.add_subcommands(required=True, dest="command")
    modules: dict[str, Any] = {}
    # Only what is asked for: some take seconds to import, and comparing runs is quick.
    for name in [args[0]] if args and args[0] in COMMANDS else COMMANDS:
        module = modules[name] = importlib.import_module(f"reporting.commands.{name}")
        summary, _, _ = (getattr(module, name).__doc__ or "").partition("\n\n    Args:")
        command = ArgumentParser(description=summary)
        module.add_arguments(command)
        commands.add_subcommand(name, command, help=summary.partition("\n")[0])
    settings = parser.parse_args(args).as_dict()
    name = settings["command"]
    work = partial(getattr(modules[name], name), **settings[name])
    return run(work, logging.getLogger("report"))


if __name__ == "__main__":
    sys.exit(main())
