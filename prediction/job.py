"""From a run and a file of dialogues to a file of summaries."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from common.run_folder import expand
from common.versions import find_versions
from datamodules.encoding import Encoded, Encoder
from datamodules.reading import Row
from lightning_modules.exports import find_export_problem, load_exported
from lightning_modules.summarization import Decoding
from prediction.examples import describe_examples, open_examples
from prediction.inputs import DialogueFile
from prediction.outputs import SummaryFile, SummaryStream
from prediction.progress import PredictProgress, format_seconds
from prediction.runs import hash_model
from prediction.settings import Settings
from prediction.summarizer import Summarizer, find_device

log = logging.getLogger(__name__)


def predict(
    export: Path, settings: Settings, decoding: Decoding, console: Console, command: str = ""
) -> None:
    """Summarise a file of dialogues; go on with it where a part is done.

    Args:
        export: Folder of the model.
        settings: What is summarised, and how.
        decoding: How summaries are generated.
        console: Where progress is shown.
        command: The command line, to be kept beside the output.

    Raises:
        ValueError: If something cannot be had, or the output is of other work. Nothing of the
            output has changed then.
    """
    source = settings.open_input()
    device = find_device(settings.device)
    if problem := find_export_problem(export, settings.backbone):
        raise ValueError(problem)
    examples = describe_examples(export, settings.shots) if settings.shots else None
    contents = source.scan() if source.can_be_read_twice else None
    total = contents and contents.rows
    identity = identify(export, settings, decoding)
    identity |= {"examples": examples, "input": contents and contents.digest}
    about = {"command": command, "model": str(export), "versions": find_versions()}
    output = open_output(settings, identity, about, source)
    if output.rows and output.rows == total:
        log.info("%s is complete: %d summaries", settings.output, output.rows)
        return
    model, tokenizer = load_exported(export, settings.backbone)
    summarizer = Summarizer(
        model.to(device), tokenizer, make_encode(settings, tokenizer, examples), decoding,
        settings.batch_size, settings.precision, settings.seed,
    )  # fmt: skip
    log.info(
        "%s on %s, %s; prompt %s, %s", export, device, settings.precision,
        type(settings.prompt).__name__, decoding,
    )  # fmt: skip
    started = time.monotonic()
    with output:
        write_summaries(source, summarizer, output, settings, total, console)
    log.info(
        "%d summaries are in %s, after %s; %d dialogues were shortened to fit %d tokens",
        output.rows, settings.output, format_seconds(time.monotonic() - started),
        summarizer.shortened, settings.max_source_length,
    )  # fmt: skip
    if settings.shots:
        log.info("Of %d examples %.1f fitted", settings.shots, summarizer.shots / summarizer.rows)


def make_encode(
    settings: Settings, tokenizer: Any, examples: dict[str, Any] | None
) -> Callable[[Sequence[Row]], Encoded]:
    """Make what turns rows into prompts that fit.

    Args:
        settings: Prompt and length.
        tokenizer: The model's tokenizer.
        examples: Where examples come from, as :func:`describe_examples` says; None shows none.
    """
    length = settings.max_source_length
    if examples is not None:
        return open_examples(examples, tokenizer, settings.prompt, length).encode
    encoder = Encoder(tokenizer, settings.prompt, [], length, max_target_length=2)
    return lambda rows: encoder.encode(rows, np.empty((len(rows), 0), dtype=np.int32))


def identify(export: Path, settings: Settings, decoding: Decoding) -> dict[str, Any]:
    """Collect what decides the texts, in JSON's types.

    The batch size decides them where sampling is seeded by windows; elsewhere it may change, for
    example where memory ran out.
    """
    # As it reads; what stands before an example's summary counts where there are examples.
    prompt = settings.prompt.wrap("{dialogue}")
    if settings.shots:
        prompt = settings.prompt.example("{dialogue}", "{summary}")
    identity: dict[str, Any] = {
        "model": hash_model(export, settings.backbone),
        "prompt": prompt,
        "max_source_length": settings.max_source_length,
        "precision": settings.precision,
        "keep_dialogue": settings.keep_dialogue,
        **asdict(decoding),
    }
    if decoding.do_sample:
        names = ("seed", "batch_size", "window_batches")
        identity |= {name: getattr(settings, name) for name in names}
    return identity


def open_output(
    settings: Settings, identity: dict[str, Any], about: dict[str, Any], source: DialogueFile
) -> SummaryFile | SummaryStream:
    """Make what takes the summaries; what is there already has to be the beginning of them.

    Raises:
        ValueError: If it is not.
    """
    path = expand(settings.output)
    if settings.output == "-":
        return SummaryStream(sys.stdout)
    if path.is_dir():
        raise ValueError(f"output: {path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        return SummaryStream(path.open("w", encoding="utf-8"))
    output = SummaryFile(path, identity, about, settings.overwrite)
    if output.rows and not source.can_be_read_twice:
        raise ValueError(
            f"{path} has {output.rows} summaries, and an input that is a pipe cannot be compared "
            "with them; name a file, or start anew by --overwrite true"
        )
    if output.rows:
        output.check(source.read())
    return output


def write_summaries(
    source: DialogueFile,
    summarizer: Summarizer,
    output: SummaryFile | SummaryStream,
    settings: Settings,
    total: int | None,
    console: Console,
) -> None:
    """Summarise a file of dialogues window by window.

    Args:
        source: The file.
        summarizer: Summarises a window.
        output: Where the summaries go; it may have the beginning of them.
        settings: Size of the windows, and what a line holds.
        total: Dialogues in the file; None where nobody knows.
        console: Where progress is shown.
    """
    size = settings.batch_size * settings.window_batches
    # No more than were read before: somebody may be writing to the file.
    rows = itertools.islice(source.read(), total)
    with PredictProgress(console, total, find_start(output.rows, size)) as progress:

        def make(window: list[Row], number: int) -> list[dict[str, Any]]:
            texts = summarizer.summarise(window, number, progress.advance)
            return [
                {"id": row.id}
                | ({"dialogue": row.dialogue} if settings.keep_dialogue else {})
                | {"prediction": text}
                for row, text in zip(window, texts, strict=True)
            ]

        write_windows(rows, make, output, size)


def write_windows(
    rows: Iterator[Row],
    make: Callable[[list[Row], int], list[dict[str, Any]]],
    output: SummaryFile | SummaryStream,
    size: int,
) -> None:
    """Make lines of rows window by window, and write each window when it is done.

    Windows lie where they would without an interruption. One that was written in part is done
    again, and what is missing of it written.

    Args:
        rows: All rows, those too that are done.
        make: Makes a line of each row of a window; it is told the window's number.
        output: Where lines go; it may have the beginning of them.
        size: Rows in a window.
    """
    start = find_start(output.rows, size)
    if output.rows:
        log.info("Going on after %d lines", output.rows)
    waiting = itertools.islice(rows, start, None)
    for number, window in enumerate(cut(waiting, size), start=start // size):
        output.append(make(window, number)[output.rows - number * size :])


def find_start(done: int, size: int) -> int:
    """Find the first row of the window that is to be done next."""
    return done - done % size


def cut(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Cut rows into lists of a size, reading no further than the list at hand."""
    while window := list(itertools.islice(rows, size)):
        yield window
