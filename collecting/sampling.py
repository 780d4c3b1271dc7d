"""Sample different completions of each dialogue from the models of one or more runs.

The runs take turns: of R runs, completion j of dialogue i comes from run (i + j) mod R. Texts that
differ only in white space are one text; duplicates and empty texts are sampled again.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.jsonl import append, read_jsonl, to_lines
from common.resumable import count_done, open_output
from common.run_folder import expand
from datamodules.reading import (
    ColumnNames,
    Row,
    Split,
    group,
    parse_rows,
    read_records,
    with_unique_ids,
)
from datamodules.splits import DialogueReader
from lightning_modules.exported_run import (
    ExportedRun,
    Generate,
    find_device,
    hash_rows,
    load_generator,
    read_exported_run,
)

log = logging.getLogger(__name__)

SAMPLING = {"do_sample": True, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
"""Fields of `Decoding` that are not the run's own."""


def read_runs(
    paths: Sequence[str], given: Mapping[str, Any], backbone: str | None = None
) -> dict[str, ExportedRun]:
    """Read how runs were tested, by names that differ.

    Args:
        paths: Run folders, their exports, or any model folders.
        given: See `read_exported_run`.
        backbone: Where an adapter's backbone is now, if it has moved.

    Raises:
        ValueError: If there is no such model, a setting is invalid, or a run is named twice.
    """
    runs = [read_exported_run(path, {**given, **SAMPLING}, backbone) for path in paths]
    if len({run.export.resolve() for run in runs}) < len(runs):
        raise ValueError(f"a run is named twice: {', '.join(paths)}")
    names = [run.name for run in runs]
    return dict(zip(names if len(set(names)) == len(names) else paths, runs, strict=True))


def read_rows(source: str, split: Split | None, max_rows: int | None) -> list[Row]:
    """Read dialogues, each once; those of a file need no references.

    Args:
        source: A .jsonl or .csv file, or what --data.source accepts.
        split: Split of a source that is not a file; None is train.
        max_rows: Only the first so many dialogues.

    Raises:
        DataError: If there are none, or one is bad.
        ValueError: If a split of a file is asked for.
    """
    path = expand(source)
    if path.is_file():
        if split is not None:
            raise ValueError(f"split: {source} is a file, all of which is used")
        rows = parse_rows(
            read_records(path), str(path), ColumnNames(), needs_summary=False, remedy="Correct them"
        )
    else:
        rows = DialogueReader(source).read(split or "train")
    return with_unique_ids(group(rows))[:max_rows]


def sample(
    runs: Mapping[str, ExportedRun],
    rows: Sequence[Row],
    output: Path,
    completions: int = 4,
    retries: int = 4,
    seed: int = 42,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Write samples, or continue an interrupted call with the same arguments.

    Args:
        runs: The runs by name.
        rows: The dialogues.
        output: JSON lines to write.
        completions: Number of completions per dialogue.
        retries: How often missing completions are sampled again.
        seed: Seed of the sampling.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        overwrite: Start over, whatever the file holds.

    Raises:
        ValueError: If a value is out of range, or the file was written with other arguments.
    """
    if completions < max(2, len(runs)):
        raise ValueError(f"completions must be at least 2 and one per run, got {completions}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    if output.is_dir():
        raise ValueError(f"output: {output} is a folder; name a file in it")
    target = find_device(device)
    identity: dict[str, Any] = {
        "input": hash_rows(rows), "completions": completions, "retries": retries, "seed": seed,
    }  # fmt: skip
    for name, run in runs.items():
        identity |= {f"{name}: {key}": value for key, value in run.identify().items()}
    done = count_done(output, identity, overwrite)
    if done < len(rows):
        generators = {name: load_generator(run, target) for name, run in runs.items()}
        size = next(iter(runs.values())).batch_size
        with open_output(output, identity, done) as file:
            # Windows begin at the same rows after an interruption, so that the texts are the same.
            for start in range(done - done % size, len(rows), size):
                window = rows[start : start + size]
                samples = sample_window(generators, window, (seed, start), completions, retries)
                append(file, to_lines(samples[max(0, done - start) :]).encode())
                log.info("%d of %d dialogues", start + len(window), len(rows))
    else:
        log.info("%s is complete", output)
    report(output, completions)


def sample_window(
    generators: Mapping[str, Generate],
    rows: Sequence[Row],
    key: tuple[int, int],
    completions: int,
    retries: int,
) -> list[dict[str, Any]]:
    """Sample the completions of some rows.

    Args:
        generators: The runs by name.
        rows: N rows.
        key: The seed, and the number of the first row in the input.
        completions: Number of completions per row.
        retries: How often missing ones are sampled again.

    Returns:
        N samples, as the file has them; a row may have too few completions.
    """
    found: list[dict[str, tuple[str, str]]] = [{} for _ in rows]
    for attempt in range(retries + 1):
        for turn, (name, generate) in enumerate(generators.items()):
            missing = []
            for i, texts in enumerate(found):
                wanted = sum((key[1] + i + j) % len(generators) == turn for j in range(completions))
                missing += [i] * (wanted - sum(source == name for _, source in texts.values()))
            if not missing:
                continue
            new = generate([rows[i] for i in missing], (*key, turn, attempt))
            for i, text in zip(missing, new, strict=True):
                if plain := " ".join(text.split()):
                    found[i].setdefault(plain, (text, name))
    return [
        {
            "id": row.id, "dialogue": row.dialogue, "references": list(row.references),
            "completions": [text for text, _ in texts.values()],
            "sources": [name for _, name in texts.values()],
        }
        for row, texts in zip(rows, found, strict=True)
    ]  # fmt: skip


def report(path: Path, wanted: int) -> None:
    """Log how many completions a file has, and how many dialogues have too few."""
    counts = [
        len(record["completions"]) for _, record in read_jsonl(path) if isinstance(record, dict)
    ]
    log.info("%d dialogues with %d completions are in %s", len(counts), sum(counts), path)
    if few := sum(count < wanted for count in counts):
        log.warning(
            "%d of them have fewer than %d different completions, and %d fewer than two, which "
            "cannot be ranked; a higher --temperature or more --retries find more",
            few, wanted, sum(count < 2 for count in counts),
        )  # fmt: skip
