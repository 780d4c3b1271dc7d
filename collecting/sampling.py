"""Draw several different completions a dialogue from the models that runs exported."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from collecting.sampler import Sampler
from common.jsonl import read_jsonl
from common.run_folder import expand
from common.versions import find_versions
from datamodules.reading import ColumnNames, Row, Split, group, with_unique_ids
from datamodules.splits import SplitReader
from lightning_modules.exports import find_export_problem, load_exported
from lightning_modules.summarization import Decoding
from prediction.examples import describe_examples
from prediction.inputs import DialogueFile
from prediction.job import find_start, identify, make_encode, write_windows
from prediction.outputs import SummaryFile
from prediction.progress import PredictProgress, format_seconds
from prediction.settings import Settings
from prediction.summarizer import Summarizer, find_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleSettings(Settings):
    r"""What completions are drawn of, and how.

    Args:
        input: Dialogues: a file, as predict.py reads it, or what --data.source takes: mini, a
            folder with splits, a hub id.
        output: JSON lines to write (id, dialogue, references, completions, sources). A file that
            holds the beginning of the same work is gone on with.
        format: What an input file is: jsonl; csv; text, blank lines between the dialogues; lines,
            one dialogue a line with \n for its line breaks; auto goes by the ending.
        summary_column: Column of the references, or the stem of several, where there is one.
        split: Split of an input that is no file; train by default.
        max_rows: The first so many dialogues only.
        completions: Different completions a dialogue, dealt evenly to the runs.
        retries: How often what came out empty or as one that is there already is drawn again.

    Raises:
        ValueError: If a value is out of range.
    """

    window_batches: int = 4
    summary_column: str = ColumnNames.summary
    split: Split | None = None
    max_rows: int | None = None
    completions: int = 4
    retries: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"max_rows": 1, "completions": 2, "retries": 0}
        problems = [
            f"{name} must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) is not None and getattr(self, name) < low
        ]
        if self.output == "-":
            problems.append("output must be a file: what goes to a pipe is not gone on with")
        if problems:
            raise ValueError("; ".join(problems))

    def read_rows(self) -> list[Row]:
        """Read the dialogues, each once.

        Raises:
            DataError: If there are none, or one is bad.
            ValueError: If a split of a file is asked for.
        """
        columns = ColumnNames(self.id_column, self.dialogue_column, self.summary_column)
        if self.input == "-" or expand(self.input).is_file():
            if self.split is not None:
                raise ValueError(f"split: {self.input} is a file and has none")
            file = DialogueFile(self.input, self.format, columns, self.on_bad_row, True)
            rows = list(file.read())
        else:
            reader = SplitReader(self.input, columns, self.on_bad_row)
            rows = reader.read(self.split or "train")
        return with_unique_ids(group(rows))[: self.max_rows]


class Run(NamedTuple):
    """A model to draw from, and how."""

    name: str
    export: Path
    settings: SampleSettings
    decoding: Decoding


def sample(runs: Sequence[Run], console: Console, command: str = "") -> None:
    """Draw completions into a file; go on with it where a part is done.

    Args:
        runs: The models; input, output and numbers are those of the first one's settings.
        console: Where progress is shown.
        command: The command line, to be kept beside the output.

    Raises:
        ValueError: If something cannot be had, or the output is of other work. Nothing of the
            output has changed then.
    """
    settings = runs[0].settings
    if settings.completions < len(runs):
        raise ValueError(f"completions is {settings.completions}, fewer than {len(runs)} runs")
    for run in runs:
        if problem := find_export_problem(run.export, run.settings.backbone):
            raise ValueError(problem)
    find_device(settings.device)
    path = expand(settings.output)
    if path.is_dir():
        raise ValueError(f"output: {path} is a folder; name a file in it")
    rows = settings.read_rows()
    models = [str(run.export) for run in runs]
    about = {"command": command, "models": models, "versions": find_versions()}
    output = SummaryFile(
        path, _identify(runs, rows), about, settings.overwrite, column="completions"
    )
    if output.rows:
        output.check(rows)
    if output.rows == len(rows):
        log.info("%s is complete", path)
    else:
        _write(runs, rows, output, console)
    _report(path, settings.completions)


def _identify(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Collect what decides the completions, in JSON's types."""
    settings = runs[0].settings
    content = json.dumps([[*row] for row in rows]).encode()
    identity: dict[str, Any] = {
        "input": hashlib.sha256(content).hexdigest(),
        "completions": settings.completions,
        "retries": settings.retries,
        "runs": [run.name for run in runs],
    }
    for run in runs:
        own = identify(run.export, run.settings, run.decoding) | {"shots": run.settings.shots}
        identity |= {f"{run.name}: {name}": value for name, value in own.items()}
    return identity


def _write(runs: Sequence[Run], rows: Sequence[Row], output: SummaryFile, console: Console) -> None:
    settings = runs[0].settings
    sampler = Sampler(
        {run.name: _load(run) for run in runs}, settings.completions, settings.retries
    )
    size = settings.batch_size * settings.window_batches
    each = settings.completions
    started = time.monotonic()
    done = find_start(output.rows, size) * each
    with output, PredictProgress(console, len(rows) * each, done, unit="completions") as progress:

        def make(window: list[Row], number: int) -> list[dict[str, Any]]:
            return sampler.draw(window, number, number * size, progress.advance)

        write_windows(iter(rows), make, output, size)
    log.info("Took %s", format_seconds(time.monotonic() - started))


def _load(run: Run) -> Summarizer:
    """Load a model, ready to sample."""
    settings = run.settings
    examples = describe_examples(run.export, settings.shots) if settings.shots else None
    model, tokenizer = load_exported(run.export, settings.backbone)
    device = find_device(settings.device)
    log.info(
        "%s: %s on %s, %s; prompt %s, %s", run.name, run.export, device, settings.precision,
        type(settings.prompt).__name__, {k: v for k, v in asdict(run.decoding).items() if v},
    )  # fmt: skip
    return Summarizer(
        model.to(device), tokenizer, make_encode(settings, tokenizer, examples), run.decoding,
        settings.batch_size, settings.precision, settings.seed,
    )  # fmt: skip


def _report(path: Path, asked: int) -> None:
    """Say what is in the file, and of how many dialogues there was too little to be had."""
    counts = [
        len(record["completions"]) for _, record in read_jsonl(path) if isinstance(record, dict)
    ]
    log.info("%d dialogues with %d completions are in %s", len(counts), sum(counts), path)
    if few := sum(count < asked for count in counts):
        log.warning(
            "%d of them have fewer than %d different ones, %d fewer than two, which nobody can "
            "rank; a higher --temperature or more --retries find more",
            few, asked, sum(count < 2 for count in counts),
        )  # fmt: skip
