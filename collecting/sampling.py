"""Sample different completions of each dialogue from the models of one or more runs.

The runs take turns: of R runs, completion j of dialogue i comes from run (i + j) mod R. Texts that
differ only in white space are one text; duplicates and empty texts are sampled again.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.exits import quieten_models
from common.jsonl import read_jsonl
from common.resumable import count_done, write_windows
from common.run_folder import expand
from datamodules import reading
from datamodules.splits import DialogueReader

if TYPE_CHECKING:
    from lightning_modules.exported_run import Generate

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often completions are sampled until there are enough different ones."""


def sample(
    runs: list[str],
    input: str,
    output: str,
    split: reading.Split = "train",
    max_rows: int | None = None,
    completions: int = 4,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Sample different completions of each dialogue from the models of runs.

    Prompt, lengths, batch size and precision are each run's own. The same command continues an
    interrupted one.

    Args:
        runs: Run folders, their exports, or any model folders.
        input: What --data.source accepts, or a .jsonl or .csv file whose dialogues need no
            references.
        output: JSON lines to write.
        split: Split of an input that is not a file.
        max_rows: Number of dialogues to use; the first ones.
        completions: Number of different completions per dialogue, shared by the runs.
        temperature: Divides the logits; the run's own value by default.
        top_k: Sample among the k most likely tokens; 0 means all.
        top_p: Sample among the most likely tokens that hold this much probability.
        batch_size: Prompts in one pass.
        device: auto, cpu, cuda, cuda:1, ...
        seed: Seed of the sampling.
        overwrite: Start over, whatever the output contains.

    Raises:
        ValueError: If something is missing or invalid, or if the output was written with other
            settings. The output is unchanged then.
    """
    quieten_models()
    # torch and transformers take seconds to import.
    from common import hub
    from lightning_modules import exported_run

    if not hub.reachable():
        hub.use_cache_only()
    if completions < max(2, len(runs)):
        raise ValueError(f"completions must be at least 2 and one per run, got {completions}")
    given = {
        "do_sample": True, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "batch_size": batch_size,
    }  # fmt: skip
    models = [exported_run.read_exported_run(path, given) for path in runs]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        names = runs
    if len(set(names)) < len(names):
        raise ValueError(f"a run is named twice: {', '.join(runs)}")
    rows = read_rows(input, split, max_rows)
    file = expand(output)
    if file.is_dir():
        raise ValueError(f"output: {output} is a folder; name a file in it")
    target = exported_run.find_device(device)
    identity: dict[str, Any] = {
        "input": exported_run.hash_rows(rows), "completions": completions, "seed": seed
    }  # fmt: skip
    for name, model in zip(names, models, strict=True):
        identity |= {f"{name}: {key}": value for key, value in model.identify().items()}
    done, size = count_done(file, identity, overwrite), models[0].batch_size
    if done < len(rows):
        generators = {
            name: exported_run.load_generator(model, target)
            for name, model in zip(names, models, strict=True)
        }

        def complete(window: Sequence[reading.Row], start: int) -> list[dict[str, Any]]:
            return sample_window(generators, window, (seed, start), completions)

        for count in write_windows(file, identity, done, rows, size, complete):
            log.info("%d of %d dialogues", count, len(rows))
    report(file, completions)


def read_rows(source: str, split: reading.Split, max_rows: int | None) -> list[reading.Row]:
    """Read dialogues, each once; those of a file need no references.

    Raises:
        DataError: If there are none, or one is bad.
    """
    path = expand(source)
    if path.is_file():
        rows = reading.parse_rows(
            reading.read_records(path), str(path), reading.ColumnNames(), needs_summary=False,
            remedy="Correct them",
        )  # fmt: skip
    else:
        rows = DialogueReader(source).read(split)
    return reading.with_unique_ids(reading.group(rows))[:max_rows]


def sample_window(
    generators: Mapping[str, "Generate"],
    rows: Sequence[reading.Row],
    key: tuple[int, int],
    completions: int,
) -> list[dict[str, Any]]:
    """Sample the completions of some rows.

    Args:
        generators: The runs by name.
        rows: N rows.
        key: The seed, and the number of the first row in the input.
        completions: Number of completions per row.

    Returns:
        N samples, as the file has them; a row may have too few completions.
    """
    found: list[dict[str, tuple[str, str]]] = [{} for _ in rows]
    for attempt in range(ATTEMPTS):
        for turn, (name, generate) in enumerate(generators.items()):
            missing = []
            for i, texts in enumerate(found):
                wanted = sum((key[1] + i + j) % len(generators) == turn for j in range(completions))
                missing += [i] * (wanted - sum(source == name for _, source in texts.values()))
            new = generate([rows[i] for i in missing], (*key, turn, attempt)) if missing else []
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
            "cannot be ranked; a higher --temperature finds more",
            few, wanted, sum(count < 2 for count in counts),
        )  # fmt: skip
