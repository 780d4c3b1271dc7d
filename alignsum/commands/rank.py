"""Collect people's rankings of completions: sample them, rank them on a page, exchange them.

    python -m alignsum rank sample runs/lora --input mini --max_rows 200 --output runs/samples.jsonl
    python -m alignsum rank serve --samples runs/samples.jsonl
    python -m alignsum rank export --samples runs/samples.jsonl --output runs/tasks.json
    python -m alignsum rank import --input exported.json --answers runs/samples.answers.jsonl

Details: docs/ranking.md.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jsonargparse import ArgumentParser

from collecting import label_studio, server
from common.exits import quieten_models, run, start_log
from common.run_folder import expand

log = logging.getLogger("rank")


def sample(
    runs: list[str],
    input: str,
    output: str,
    split: Literal["train", "validation", "test"] | None = None,
    max_rows: int | None = None,
    completions: int = 4,
    retries: int = 4,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    max_source_length: int | None = None,
    prompt: str | None = None,
    batch_size: int | None = None,
    backbone: str | None = None,
    device: str = "auto",
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Sample different completions of each dialogue from the models of runs.

    Prompt, lengths, batch size and precision are each run's own unless given. The same command
    continues an interrupted one.

    Args:
        runs: Run folders, their exports, or any model folders.
        input: Dialogues: a .jsonl or .csv file, or what --data.source accepts.
        output: JSON lines to write.
        split: Split of an input that is not a file; train by default.
        max_rows: Only the first so many dialogues.
        completions: Number of different completions per dialogue, shared by the runs.
        retries: How often duplicates and empty texts are sampled again.
        temperature: Divides the logits; the run's own value by default.
        top_k: Sample among the k most likely tokens; 0 means all.
        top_p: Sample among the most likely tokens that hold this much probability.
        max_new_tokens: Longest completion in tokens.
        max_source_length: Longest prompt in tokens.
        prompt: Class of the words around the dialogue, such as Flan.
        batch_size: Prompts in one pass.
        backbone: Folder or hub id of an adapter's backbone, if it has moved.
        device: auto, cpu, cuda, cuda:1, ...
        seed: Seed of the sampling.
        overwrite: Start over, whatever the output holds.
    """
    quieten_models()
    from collecting import sampling  # torch and transformers take seconds to import
    from common import hub

    if not hub.reachable():
        hub.use_cache_only()
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "max_new_tokens": max_new_tokens, "max_source_length": max_source_length,
        "prompt": prompt, "batch_size": batch_size,
    }  # fmt: skip
    models = sampling.read_runs(runs, given, backbone)
    rows = sampling.read_rows(input, split, max_rows)
    sampling.sample(models, rows, expand(output), completions, retries, seed, device, overwrite)


COMMANDS: dict[str, Callable[..., None]] = {
    "sample": sample,
    "serve": server.serve,
    "export": label_studio.export_tasks,
    "import": label_studio.import_answers,
}  # fmt: skip


def make_parser() -> ArgumentParser:
    """Make the parser of all four commands."""
    about = (__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog="alignsum rank", description=about)
    commands = parser.add_subcommands(required=True, dest="command")
    for name, function in COMMANDS.items():
        text = (function.__doc__ or "").partition("\n\n    Args:")[0]
        command = ArgumentParser(description=text)
        if function is sample:
            command.add_argument("runs", nargs="+", metavar="RUN", help="run or model folders")
        command.add_function_arguments(function, as_positional=False, skip={"runs"})
        commands.add_subcommand(name, command, help=text.partition("\n")[0])
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code (see common/exits.py)."""
    settings: Any = make_parser().parse_args(sys.argv[1:] if args is None else list(args))
    start_log()
    work = partial(COMMANDS[settings.command], **settings[settings.command].as_dict())
    return run(work, log, "interrupted; the same command continues")
