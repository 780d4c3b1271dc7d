"""Sample different completions of each dialogue from the models of one or more runs.

The runs take turns: of R runs, completion j of dialogue i comes from run (i + j) mod R. Texts that
differ only in white space are one text; duplicates and empty texts are sampled again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser

from common.jsonl import append, open_to_append, read_jsonl, to_lines
from common.run_folder import RunFolder, expand, write_text
from datamodules.batching import pad
from datamodules.encoding import Encoder
from datamodules.prompts import PromptStyle
from datamodules.reading import (
    ColumnNames,
    Row,
    Split,
    group,
    parse_dialogue,
    parse_known_references,
    parse_records,
    read_records,
    refuse_bad_rows,
    with_unique_ids,
)  # fmt: skip
from datamodules.splits import SplitReader
from lightning_modules.exports import find_export_problem, load_exported
from lightning_modules.summarization import Decoding, generate_texts

log = logging.getLogger(__name__)

Draw = Callable[[Sequence[Row], Sequence[int]], list[str]]
"""Samples one text for each row; the integers are the seed."""


@dataclass(frozen=True)
class Run:
    """A model to sample from, and how.

    Args:
        name: Shown as the source of its completions.
        export: Folder of the model.
        prompt: The words around a dialogue.
        decoding: How texts are sampled.
        max_source_length: Maximum number of tokens of a prompt.
        batch_size: Prompts in one pass.
        precision: ``32-true``, or ``bf16-mixed`` for bf16 arithmetic with fp32 weights.
        backbone: Where an adapter's backbone is now; None takes it from where the adapter says.
    """

    name: str
    export: Path
    prompt: PromptStyle
    decoding: Decoding
    max_source_length: int = 512
    batch_size: int = 8
    precision: str = "32-true"
    backbone: str | None = None

    def identify(self) -> dict[str, Any]:
        """Describe what decides the texts, in JSON types."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.export.rglob("*") if path.is_file()):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        others = {
            "max_source_length": self.max_source_length, "batch_size": self.batch_size,
            "precision": self.precision, "prompt": self.prompt.wrap("{dialogue}"),
        }  # fmt: skip
        return {"model": digest.hexdigest(), **asdict(self.decoding), **others}


def read_run(path: str, given: Mapping[str, Any], backbone: str | None = None) -> Run:
    """Read how a run's model was tested; settings that are given take precedence.

    Args:
        path: A run folder, its export, or any model folder.
        given: Fields of :class:`Run` and of :class:`Decoding`; None keeps the run's own.
        backbone: Where an adapter's backbone is now, if it has moved.

    Raises:
        ValueError: If there is no such model, or a setting is invalid.
    """
    folder = expand(path)
    export = folder / "export" if (folder / "export").is_dir() else folder
    if problem := find_export_problem(export, backbone):
        raise ValueError(problem)
    home = export.resolve().parent if export.resolve().name == "export" else export.resolve()
    config = RunFolder(home).read_config() if home != export.resolve() else {}
    try:
        model, data = ((config.get(part) or {}).get("init_args", {}) for part in ("model", "data"))
        found = {
            "prompt": data.get("prompt"),
            "max_source_length": data.get("max_source_length"),
            "batch_size": data.get("eval_batch_size") or data.get("batch_size"),
            "precision": (config.get("trainer") or {}).get("precision"),
            **(model.get("decoding") or {}),
        }
    except AttributeError as error:
        raise ValueError(f"{home} has no valid config.yaml ({error})") from error
    if data.get("shots"):
        log.warning("%s was tested with examples in its prompts; samples have none", path)
    settings = {**found, **{name: value for name, value in given.items() if value is not None}}
    settings = {name: value for name, value in settings.items() if value is not None}
    names = {field.name for field in fields(Decoding)} - {
        "do_sample", "num_beams", "length_penalty", "early_stopping"
    }  # fmt: skip
    decoding = Decoding(do_sample=True, **{n: settings.pop(n) for n in names & settings.keys()})
    kept = {field.name for field in fields(Run)} & settings.keys()
    own = {name: settings[name] for name in kept} | {"decoding": decoding, "backbone": backbone}
    own["prompt"] = make_prompt(settings.get("prompt", "Instruction"))
    return Run(home.name, export, **own)


def make_prompt(value: Any) -> PromptStyle:
    """Make a prompt style from its class name, or from its class_path and init_args."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptStyle, "prompt")
    try:
        prompt: PromptStyle = parser.instantiate(parser.parse_object({"prompt": value})).prompt
    except ArgumentError as error:
        raise ValueError(f"prompt: {error}") from error
    return prompt


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
    path, columns = expand(source), ColumnNames()
    if path.is_file():
        if split is not None:
            raise ValueError(f"split: {source} is a file, all of which is used")

        def parse(record: Mapping[str, Any], number: int) -> Row:
            name, dialogue = parse_dialogue(record, str(number), columns)
            return Row(name, dialogue, parse_known_references(record, columns))

        rows, problems = parse_records(read_records(path), str(path), parse, {})
        refuse_bad_rows(problems, "stop")
    else:
        rows = SplitReader(source, columns, "stop", holdout=0.1).read(split or "train")
    if not rows:
        raise ValueError(f"input: {source} has no dialogues")
    return with_unique_ids(group(rows))[:max_rows]


def sample(
    runs: Sequence[Run],
    rows: Sequence[Row],
    output: Path,
    completions: int = 4,
    retries: int = 4,
    seed: int = 42,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Write samples, continuing where an interrupted call with the same arguments stopped.

    Args:
        runs: The models.
        rows: The dialogues.
        output: JSON lines to write; ``<output>.settings.json`` records what decided them.
        completions: Number of completions per dialogue.
        retries: How often missing completions are sampled again.
        seed: Seed of the sampling.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        overwrite: Start over, whatever the file holds.

    Raises:
        ValueError: If a value is out of range, or the file was written with other arguments.
    """
    for name, value, low in (
        ("completions", completions, max(2, len(runs))),
        ("retries", retries, 0),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if output.is_dir():
        raise ValueError(f"output: {output} is a folder; name a file in it")
    content = json.dumps([[*row] for row in rows]).encode()
    identity: dict[str, Any] = {
        "input": hashlib.sha256(content).hexdigest(), "completions": completions,
        "retries": retries, "seed": seed,
        **{f"{run.name}: {key}": value for run in runs for key, value in run.identify().items()},
    }  # fmt: skip
    target = find_device(device)
    done = prepare_output(output, identity, overwrite)
    if done < len(rows):
        draws = {run.name: load_draw(run, target, seed) for run in runs}
        with open_to_append(output) as file:
            # Windows begin at the same rows after an interruption, so that the texts are the same.
            size = runs[0].batch_size
            for start in range(done - done % size, len(rows), size):
                window = rows[start : start + size]
                samples = draw_window(draws, window, start, completions, retries)
                new = samples[max(0, done - start) :]
                append(file, to_lines(new).encode())
                log.info("%d of %d dialogues", start + len(window), len(rows))
    else:
        log.info("%s is complete", output)
    report(output, completions)


def draw_window(
    draws: Mapping[str, Draw], rows: Sequence[Row], first: int, completions: int, retries: int
) -> list[dict[str, Any]]:
    """Sample the completions of some rows.

    Args:
        draws: The runs by name.
        rows: N rows.
        first: Number of the first of them in the input: a part of the seed.
        completions: Number of completions per row.
        retries: How often missing ones are sampled again.

    Returns:
        N samples, as the file has them; a row may have too few completions.
    """
    found: list[dict[str, tuple[str, str]]] = [{} for _ in rows]
    for attempt in range(retries + 1):
        for turn, (name, draw) in enumerate(draws.items()):
            missing = [
                i
                for i, texts in enumerate(found)
                for _ in range(
                    sum((first + i + j) % len(draws) == turn for j in range(completions))
                    - sum(source == name for _, source in texts.values())
                )
            ]
            if not missing:
                continue
            texts = draw([rows[i] for i in missing], (first, turn, attempt))
            for i, text in zip(missing, texts, strict=True):
                if key := " ".join(text.split()):
                    found[i].setdefault(key, (text, name))
    return [
        {
            "id": row.id, "dialogue": row.dialogue, "references": list(row.references),
            "completions": [text for text, _ in texts.values()],
            "sources": [name for _, name in texts.values()],
        }
        for row, texts in zip(rows, found, strict=True)
    ]  # fmt: skip


def load_draw(run: Run, device: torch.device, seed: int) -> Draw:
    """Load a run's model, and return the function that samples from it."""
    model, tokenizer = load_exported(run.export, run.backbone)
    model = model.to(device)
    encoder = Encoder(tokenizer, run.prompt, [], run.max_source_length, max_target_length=2)
    log.info("%s: %s on %s, %s, %s", run.name, run.export, device, run.precision, run.decoding)

    def draw(rows: Sequence[Row], key: Sequence[int]) -> list[str]:
        torch.manual_seed(int(np.random.SeedSequence((seed, *key)).generate_state(1)[0]))
        # The encoder also encodes a reference, which is not used.
        sources = encoder.encode([row._replace(references=("",)) for row in rows]).sources
        texts: list[str] = []
        for start in range(0, len(sources), run.batch_size):
            part = sources[start : start + run.batch_size]
            ids = pad(part, tokenizer.pad_token_id).to(device)
            mask = pad([np.ones_like(each) for each in part], 0).to(device)
            bf16 = "bf16" in run.precision
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                texts += generate_texts(model, tokenizer, ids, mask, run.decoding)
        return texts

    return draw


def find_device(name: str) -> torch.device:
    """Return a device; ``auto`` is the accelerator if there is one, or else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    try:
        if name == "auto":
            return torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available ({error})") from error


def prepare_output(output: Path, identity: Mapping[str, Any], overwrite: bool) -> int:
    """Return how many samples a file already has, without an incomplete last line.

    Raises:
        ValueError: If other settings produced it; names them.
    """
    about = output.with_name(f"{output.name}.settings.json")
    if overwrite or not output.exists():
        output.unlink(missing_ok=True)
        write_text(about, json.dumps(identity, indent=1) + "\n")
        return 0
    before = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    if changed := [
        name for name in {**before, **identity} if before.get(name) != identity.get(name)
    ]:
        raise ValueError(
            f"{output} was written with other settings ("
            + "; ".join(f"{n} was {before.get(n)} and is {identity.get(n)}" for n in changed)
            + "); name another --output, or use --overwrite true"
        )
    content = output.read_bytes()
    with output.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return content.count(b"\n")


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
