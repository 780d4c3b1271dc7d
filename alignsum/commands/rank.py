"""Collect people's rankings of completions: sample them, rank them on a page, exchange them.

    python -m alignsum rank sample runs/lora --input mini --max_rows 200 --output runs/samples.jsonl
    python -m alignsum rank serve --samples runs/samples.jsonl
    python -m alignsum rank export --samples runs/samples.jsonl --output runs/tasks.json
    python -m alignsum rank import --input exported.json --answers runs/samples.answers.jsonl

Details: docs/ranking.md.
"""

import sys
from collections.abc import Callable, Sequence

from alignsum.commands.options import run_command
from collecting import label_studio, sampling, server

COMMANDS: dict[str, Callable[..., None]] = {
    "sample": sampling.sample,
    "serve": server.serve,
    "export": label_studio.export_tasks,
    "import": label_studio.import_answers,
}


def main(args: Sequence[str]) -> int:
    """Run the command line, and return the exit code (see common/exits.py)."""
    name = args[0] if args else ""
    if name not in COMMANDS:
        is_help = name in ("-h", "--help")
        lines = ["usage: python -m alignsum rank COMMAND [OPTIONS]", ""]
        for each, function in COMMANDS.items():
            lines.append(f"  {each:<8} {(function.__doc__ or '').partition(chr(10))[0]}")
        (sys.stdout if is_help else sys.stderr).write("\n".join([*lines, ""]))
        return 0 if is_help else 2
    positional = "run or model folders" if name == "sample" else ""
    return run_command(f"rank {name}", COMMANDS[name], args[1:], positional)
