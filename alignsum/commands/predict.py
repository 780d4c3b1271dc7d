"""Summarize the dialogues of a file with the model that a run exported.

    python -m alignsum predict runs/lora --input dialogues.jsonl --output summaries.jsonl
    python -m alignsum predict runs/lora --input chats.txt --output summaries.jsonl --num_beams 4

The prompt, few-shot examples, lengths, precision and decoding of the run's test are the defaults.
The output has a line for each dialogue, in the order of the input. If the command is interrupted,
run it again: it continues after the last complete line.
"""

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from common.exits import quieten_models, run, start_log
from common.jsonl import Record, append, to_lines
from common.resumable import count_done, hash_files, open_output
from common.run_folder import RunFolder

if TYPE_CHECKING:
    from datamodules.reading import Row
    from lightning_modules.summarization import Decoding

log = logging.getLogger("predict")

DECODING: dict[str, type] = {
    "max_new_tokens": int,
    "min_new_tokens": int,
    "no_repeat_ngram_size": int,
    "num_beams": int,
    "length_penalty": float,
    "early_stopping": bool,
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
}
"""Fields of `Decoding` and their types."""

WINDOW_BATCHES = 16
"""Batches that are sorted by length, generated and written together."""


def make_parser() -> ArgumentParser:
    """Make the parser of the command line; None means the run's own setting."""
    parser = ArgumentParser(prog="alignsum predict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="run folder, its export, or a model in Hugging Face format")
    parser.add_argument("--input", required=True, help=".jsonl, .csv, or .txt with blank lines")
    parser.add_argument("--output", required=True, help="JSON lines to write: id, prediction")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace another output")
    parser.add_argument("--dialogue_column", type=str, default="dialogue")
    parser.add_argument("--id_column", type=str, default="id")
    parser.add_argument("--on_bad_row", choices=["stop", "skip"], default="stop")
    parser.add_argument("--backbone", type=str | None, help="where an adapter's backbone is now")
    parser.add_argument("--prompt", type=str | dict | None, help="style, such as Flan")
    parser.add_argument("--shots", type=int | None, help="examples from the run's train split")
    parser.add_argument("--max_source_length", type=int | None, help="maximum tokens of a prompt")
    parser.add_argument("--batch_size", type=int | None, help="dialogues in one pass")
    parser.add_argument("--precision", type=str | None, help="32-true or bf16-mixed")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling")
    for name, kind in DECODING.items():
        parser.add_argument(f"--{name}", type=kind | None, help="see model.decoding")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    settings = make_parser().parse_args(args)
    start_log()

    def work() -> None:
        quieten_models()
        predict(settings)

    return run(work, log, "interrupted; the same command continues where it stopped")


@dataclass(frozen=True)
class Job:
    """What decides the summaries.

    Attributes:
        export: Folder of the model.
        backbone: Where an adapter's backbone is now, if it has moved.
        data: Arguments of `DialogSumDataModule`, in JSON types.
        decoding: How summaries are generated.
        precision: ``32-true``, or ``bf16-mixed`` for bf16 arithmetic with fp32 weights.
        batch_size: Dialogues in one pass.
        seed: Seed of the sampling.
    """

    export: Path
    backbone: str | None
    data: dict[str, Any]
    decoding: "Decoding"
    precision: str
    batch_size: int
    seed: int

    def identify(self, rows: Sequence["Row"]) -> dict[str, Any]:
        """Describe what decides the summaries of some rows, in JSON types.

        The batch size counts only for sampling, where it decides the random numbers, so that a run
        that is short of memory can continue with smaller batches.
        """
        content = json.dumps([row[:2] for row in rows]).encode()
        sampling = {"seed": self.seed, "batch_size": self.batch_size}
        return {
            "model": hash_files(self.export),
            "input": hashlib.sha256(content).hexdigest(),
            "precision": self.precision,
            **{name: value for name, value in self.data.items() if name != "batch_size"},
            **asdict(self.decoding),
            **(sampling if self.decoding.do_sample else {}),
        }


def read_job(settings: Namespace) -> Job:
    """Read how a run was tested; settings that are given take precedence.

    Raises:
        ValueError: If there is no such model, or a setting is invalid.
    """
    from lightning_modules.exports import find_export_problem
    from lightning_modules.summarization import Decoding

    folder = Path(settings.run).expanduser()
    export = folder / "export" if (folder / "export").is_dir() else folder
    if problem := find_export_problem(export, settings.backbone):
        raise ValueError(problem)
    home = RunFolder(export.resolve().parent)
    config = home.read_config() if export.resolve().name == "export" else {}
    try:
        model, data = (
            dict((config.get(part) or {}).get("init_args", {})) for part in ("model", "data")
        )
        precision = str((config.get("trainer") or {}).get("precision") or "32-true")
        decoding = {**(model.get("decoding") or {})}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{home.config} is not the configuration of a run ({error})") from error
    if settings.shots and not data:
        raise ValueError(f"shots: {export} belongs to no run whose train split has examples")
    if settings.batch_size is not None and settings.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}")
    batch_size = settings.batch_size or data.get("eval_batch_size") or data.get("batch_size") or 8
    given = {name: settings[name] for name in ("prompt", "shots", "max_source_length")}
    data |= {name: value for name, value in given.items() if value is not None}
    if not data.get("shots"):
        data = {name: data[name] for name in ("prompt", "max_source_length") if data.get(name)}
    decoding |= {name: settings[name] for name in DECODING if settings[name] is not None}
    if unknown := decoding.keys() - DECODING.keys():
        raise ValueError(f"{home.config}: decoding has no setting {', '.join(sorted(unknown))}")
    return Job(
        export, settings.backbone, data, Decoding(**decoding), settings.precision or precision,
        batch_size, settings.seed,
    )  # fmt: skip


def predict(settings: Namespace) -> None:
    """Summarize a file of dialogues, or continue with it.

    Raises:
        ValueError: If something is missing or invalid, or if the output was written with other
            settings. The output is unchanged then.
    """
    job = read_job(settings)
    device = find_device(settings.device)
    rows = read_dialogues(settings)
    output = Path(settings.output).expanduser()
    if output.is_dir() or output.resolve() == Path(settings.input).expanduser().resolve():
        raise ValueError(f"output: {output} is a folder or the input; name another file")
    identity = job.identify(rows)
    done = count_done(output, identity, settings.overwrite)
    if done == len(rows):
        log.info("%s is complete: %d summaries", output, done)
        return
    summarize = load_summarizer(job, device)
    began, size = time.monotonic(), job.batch_size * WINDOW_BATCHES
    with open_output(output, identity, done) as file:
        # Windows begin at the same rows after an interruption, so that the texts are the same.
        for start in range(done - done % size, len(rows), size):
            window = rows[start : start + size]
            texts = summarize(window, start)
            lines = [{"id": r.id, "prediction": t} for r, t in zip(window, texts, strict=True)]
            append(file, to_lines(lines[max(0, done - start) :]).encode())
            speed = (start + len(window) - done) / (time.monotonic() - began)
            log.info("%d of %d dialogues, %.1f/s", start + len(window), len(rows), speed)


def load_summarizer(job: Job, device: Any) -> Callable[[Sequence["Row"], int], list[str]]:
    """Load a job's model; return the function that summarizes the rows of a window."""
    import numpy as np
    import torch

    from datamodules.batching import LengthBatchSampler, pad
    from datamodules.dialogsum import DialogSumDataModule
    from lightning_modules.exports import load_exported
    from lightning_modules.summarization import generate_texts

    model, tokenizer = load_exported(job.export, job.backbone)
    model = model.to(device)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DialogSumDataModule, "data")
    arguments = {"source": "mini"} | job.data | {"tokenizer": tokenizer.name_or_path}
    made = {"class_path": "datamodules.DialogSumDataModule", "init_args": arguments}
    data = parser.instantiate(parser.parse_object({"data": made})).data
    data.tokenizer = tokenizer
    _ = data.encoder  # fails here, before the output is touched, if the prompt does not fit
    log.info("%s on %s, %s, %s", job.export, device, job.precision, job.decoding)

    def summarize(rows: Sequence["Row"], start: int) -> list[str]:
        sources = data.encode([row._replace(references=("",)) for row in rows]).sources
        torch.manual_seed(int(np.random.SeedSequence((job.seed, start)).generate_state(1)[0]))
        texts = [""] * len(rows)
        lengths = [len(source) for source in sources]
        for places in LengthBatchSampler(lengths, job.batch_size, shuffle=False):
            batch = [sources[place] for place in places]
            ids = pad(batch, tokenizer.pad_token_id).to(device)
            mask = pad([np.ones_like(each) for each in batch], 0).to(device)
            bf16 = "bf16" in job.precision
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                found = generate_texts(model, tokenizer, ids, mask, job.decoding)
            for place, text in zip(places, found, strict=True):
                texts[place] = text
        return texts

    return summarize


def read_dialogues(settings: Namespace) -> list["Row"]:
    """Read all dialogues of the input; they need no references.

    Raises:
        DataError: If there are none, or one is bad.
    """
    from datamodules.reading import (
        ColumnNames,
        DataError,
        Row,
        parse_dialogue,
        parse_records,
        read_records,
        refuse_bad_rows,
    )

    path = Path(settings.input).expanduser()
    columns = ColumnNames(settings.id_column, settings.dialogue_column)
    if not path.is_file() or path.suffix not in (".jsonl", ".csv", ".txt"):
        raise DataError(f"input: {settings.input!r} is not a .jsonl, .csv or .txt file")
    records = read_blocks(path, columns.dialogue) if path.suffix == ".txt" else read_records(path)

    def parse(record: Mapping[str, Any], _: int) -> Row:
        return Row(*parse_dialogue(record, "", columns), ())

    rows, problems = parse_records(
        records, str(path), parse, {columns.dialogue: "--dialogue_column"}
    )
    refuse_bad_rows(problems, settings.on_bad_row)
    if not rows:
        raise DataError(f"input: {path} has no dialogues")
    return [row if row.id else row._replace(id=str(i)) for i, row in enumerate(rows)]


def read_blocks(path: Path, column: str) -> list[tuple[int, Record]]:
    """Read (number of the first line, record) of the texts between blank lines."""
    numbered = enumerate(path.read_text("utf-8-sig", "surrogateescape").split("\n"), start=1)
    blocks = []
    for has_text, lines in itertools.groupby(numbered, lambda line: bool(line[1].strip())):
        if has_text:
            numbers, texts = zip(*lines, strict=True)
            blocks.append((numbers[0], {column: "\n".join(texts)}))
    return blocks


def find_device(name: str) -> Any:
    """Return a device; ``auto`` is the accelerator if there is one, and otherwise the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    try:
        if name == "auto":
            available = torch.accelerator.is_available()
            return torch.accelerator.current_accelerator() if available else torch.device("cpu")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available ({error})") from error
