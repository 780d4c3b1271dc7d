"""Summarize the dialogues of a file with the model that a run exported.

    python -m alignsum predict runs/lora chats.txt
    python -m alignsum predict runs/lora chats.jsonl --output summaries.jsonl --num_beams 4

The prompt, few-shot examples, lengths, precision and decoding of the run's test are the defaults.
The summaries are printed, or written to a file with a line for each dialogue, in the order of the
input. If a command with --output is interrupted, run it again: it continues after the last complete
line.
"""

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from alignsum.commands.options import CommandParser, make_module_parser
from common.exits import quieten_models, run, start_log
from common.jsonl import Record
from common.resumable import count_done, write_windows

if TYPE_CHECKING:
    from datamodules.reading import Row

log = logging.getLogger("predict")

GIVEN: dict[str, tuple[Any, str]] = {
    "prompt": (str | dict, "prompt style, such as Flan"),
    "chat_template": (bool, "put prompts into the model's chat template"),
    "shots": (int, "examples from the run's train split"),
    "max_source_length": (int, "maximum tokens of a prompt"),
    "batch_size": (int, "dialogues in one pass"),
    "precision": (str, "32-true or bf16-mixed"),
    "max_new_tokens": (int, "see model.decoding, as for the following"),
    **dict.fromkeys(("min_new_tokens", "no_repeat_ngram_size", "num_beams", "top_k"), (int, "")),
    **dict.fromkeys(("length_penalty", "temperature", "top_p"), (float, "")),
    **dict.fromkeys(("early_stopping", "do_sample"), (bool, "")),
}
"""Options that replace settings of the run: type and help."""

WINDOW_BATCHES = 16
"""Batches that are sorted by length, generated and written together."""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = make_module_parser("predict", __doc__)
    parser.add_argument("run", help="run folder, its export, or a model in Hugging Face format")
    parser.add_argument("file", nargs="?", help="dialogues: .jsonl, .csv, .txt with blank lines")
    parser.add_argument("--input", type=str | None, help="the same, as an option")
    parser.add_argument("--output", type=str | None, help="JSON lines to write: id, prediction")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace another output")
    parser.add_argument("--dialogue_column", type=str, default="dialogue")
    parser.add_argument("--id_column", type=str, default="id")
    parser.add_argument("--on_bad_row", choices=["stop", "skip"], default="stop")
    parser.add_argument("--backbone", type=str | None, help="where an adapter's backbone is now")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling")
    for name, (kind, text) in GIVEN.items():
        parser.add_argument(f"--{name}", type=kind | None, help=text)
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    parser = make_parser()
    settings = parser.parse_args(args)
    if (settings.file is None) == (settings.input is None):
        parser.error("name one file of dialogues: RUN FILE, or RUN --input FILE")
    settings.input = settings.input or settings.file
    start_log()

    def work() -> None:
        quieten_models()
        predict(settings)

    return run(work, log, "interrupted; the same command continues where it stopped")


def predict(settings: Namespace) -> None:
    """Summarize a file of dialogues, or continue with it; without an output, print the summaries.

    Raises:
        ValueError: If something is missing or invalid, or if the output was written with other
            settings. The output is unchanged then.
    """
    from lightning_modules import exported_run

    given = {name: settings[name] for name in GIVEN}
    job = exported_run.read_exported_run(settings.run, given, settings.backbone)
    device = exported_run.find_device(settings.device)
    rows = read_dialogues(settings)
    if settings.output is None:
        generate, size = exported_run.load_generator(job, device), job.batch_size
        for start in range(0, len(rows), size):
            texts = generate(rows[start : start + size], (settings.seed, start))
            sys.stdout.write("".join(f"{text}\n" for text in texts))
        return
    output = Path(settings.output).expanduser()
    if output.is_dir() or output.resolve() == Path(settings.input).expanduser().resolve():
        raise ValueError(f"output: {output} is a folder or the input; name another file")
    identity = {"input": exported_run.hash_rows(rows), **job.identify()}
    if job.decoding.do_sample:
        identity["seed"] = settings.seed
    done = count_done(output, identity, settings.overwrite)
    if done == len(rows):
        log.info("%s is complete: %d summaries", output, done)
        return
    generate = exported_run.load_generator(job, device)

    def summarize(window: Sequence["Row"], start: int) -> list[dict[str, str]]:
        texts = generate(window, (settings.seed, start))
        return [{"id": row.id, "prediction": t} for row, t in zip(window, texts, strict=True)]

    began, size = time.monotonic(), job.batch_size * WINDOW_BATCHES
    for count in write_windows(output, identity, done, rows, size, summarize):
        speed = (count - done) / (time.monotonic() - began)
        log.info("%d of %d dialogues, %.1f/s", count, len(rows), speed)


def read_dialogues(settings: Namespace) -> list["Row"]:
    """Read all dialogues of the input; they need no references.

    Raises:
        DataError: If there are none, or one is bad.
    """
    from datamodules.reading import ColumnNames, DataError, parse_rows, read_records

    path = Path(settings.input).expanduser()
    columns = ColumnNames(settings.id_column, settings.dialogue_column)
    if not path.is_file() or path.suffix not in (".jsonl", ".csv", ".txt"):
        raise DataError(f"input: {settings.input!r} is not a .jsonl, .csv or .txt file")
    records = read_blocks(path, columns.dialogue) if path.suffix == ".txt" else read_records(path)
    return parse_rows(
        records,
        str(path),
        columns,
        settings.on_bad_row,
        needs_summary=False,
        option="--{}_column",
        remedy="Correct them, or skip them with --on_bad_row skip",
    )


def read_blocks(path: Path, column: str) -> list[tuple[int, Record]]:
    """Read (number of the first line, record) of the texts between blank lines."""
    numbered = enumerate(path.read_text("utf-8-sig", "surrogateescape").split("\n"), start=1)
    blocks: list[tuple[int, Record]] = []
    for has_text, lines in itertools.groupby(numbered, lambda line: bool(line[1].strip())):
        if has_text:
            numbers, texts = zip(*lines, strict=True)
            blocks.append((numbers[0], {column: "\n".join(texts)}))
    return blocks
