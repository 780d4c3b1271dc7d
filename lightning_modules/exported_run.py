"""Generate texts with the model of a finished run, as the run itself was tested."""

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

from common.run_folder import RunFolder, expand
from datamodules.batching import LengthBatchSampler, pad
from datamodules.dialogsum import DialogSumDataModule
from datamodules.reading import Row
from lightning_modules.backbones import Decoding, wrap_model
from lightning_modules.exports import find_export_problem, load_exported

log = logging.getLogger(__name__)

Generate = Callable[[Sequence[Row], Sequence[int]], list[str]]
"""Generates one text for each row; the integers are the seed of the sampling."""

_DATA = ("prompt", "chat_template", "shots", "max_source_length")


@dataclass(frozen=True)
class ExportedRun:
    """An exported model, and how its run was tested.

    Attributes:
        export: Folder of the model.
        backbone: Where an adapter's backbone is now, if it has moved.
        data: Arguments of `DialogSumDataModule`, in JSON types.
        decoding: How texts are generated.
        precision: ``32-true``, or ``bf16-mixed`` for bf16 arithmetic with fp32 weights.
        batch_size: Prompts in one pass.
    """

    export: Path
    backbone: str | None
    data: dict[str, Any]
    decoding: Decoding
    precision: str
    batch_size: int

    @property
    def name(self) -> str:
        """Name of the run, or of the model's folder."""
        folder = self.export.resolve()
        return folder.parent.name if folder.name == "export" else folder.name

    def identify(self) -> dict[str, Any]:
        """Describe what decides the texts, in JSON types.

        The batch size counts only for sampling, where it decides the random numbers, so that a run
        that is short of memory can continue with smaller batches.
        """
        sampling = {"batch_size": self.batch_size} if self.decoding.do_sample else {}
        return {
            "model": hash_files(self.export),
            "precision": self.precision,
            **{name: value for name, value in self.data.items() if name != "batch_size"},
            **asdict(self.decoding),
            **sampling,
        }


def hash_files(folder: Path) -> str:
    """Hash the names and contents of the files in a folder, without its model card."""
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.name == "README.md":
            continue
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def hash_rows(rows: Sequence[Row]) -> str:
    """Hash rows with their ids and references."""
    return hashlib.sha256(json.dumps([[*row] for row in rows]).encode()).hexdigest()


def read_exported_run(
    path: str | Path, given: Mapping[str, Any], backbone: str | None = None
) -> ExportedRun:
    """Read how a run was tested; settings that are given take precedence.

    Args:
        path: A run folder, its export, or a model in Hugging Face or PEFT format.
        given: ``prompt``, ``chat_template``, ``shots``, ``max_source_length``, ``batch_size``,
            ``precision`` and fields of `Decoding`; None keeps the run's own.
        backbone: Where an adapter's backbone is now, if it has moved.

    Raises:
        ValueError: If there is no such model, or a setting is invalid.
    """
    folder = expand(path)
    export = folder / "export" if (folder / "export").is_dir() else folder
    if problem := find_export_problem(export, backbone):
        raise ValueError(problem)
    home = RunFolder(export.resolve().parent)
    config = home.read_config() if export.resolve().name == "export" else {}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("batch_size", 1) < 1:
        raise ValueError(f"batch_size must be at least 1, got {given['batch_size']}")
    if given.get("shots") and not config:
        raise ValueError(f"shots: {export} belongs to no run whose train split has examples")
    wanted = {field.name: given[field.name] for field in fields(Decoding) if field.name in given}
    try:
        model, data = (
            dict(config.get(name, {}).get("init_args", {})) for name in ("model", "data")
        )
        decoding = Decoding(**{**(model.get("decoding") or {}), **wanted})
        precision = str(config.get("trainer", {}).get("precision") or "32-true")
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{home.config} is not the configuration of a run ({error})") from error
    size = given.get("batch_size") or data.get("eval_batch_size") or data.get("batch_size") or 8
    data |= {name: given[name] for name in _DATA if name in given}
    if not data.get("shots"):
        kept = ("prompt", "chat_template", "max_source_length")
        data = {name: data[name] for name in kept if data.get(name)}
    return ExportedRun(export, backbone, data, decoding, given.get("precision") or precision, size)


def load_generator(run: ExportedRun, device: torch.device) -> Generate:
    """Load a run's model, and return the function that generates from it.

    Raises:
        ValueError: If the run's data settings are invalid, or its prompt does not fit.
    """
    model, tokenizer = load_exported(run.export, run.backbone)
    backbone = wrap_model(model.to(device), tokenizer)
    data = make_datamodule(run, tokenizer)
    shown = ", ".join(f"{name} {value}" for name, value in run.decoding.changes().items())
    log.info("%s on %s, %s, %s", run.export, device, run.precision, shown or "default decoding")

    def generate(rows: Sequence[Row], key: Sequence[int]) -> list[str]:
        sources = [each.source for each in data.encode(rows)]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        texts = [""] * len(rows)
        lengths = [len(source) for source in sources]
        for places in LengthBatchSampler(lengths, run.batch_size, shuffle=False):
            batch = [sources[place] for place in places]
            padded = {
                "input_ids": pad(batch, backbone.pad_id).to(device),
                "attention_mask": pad([np.ones_like(each) for each in batch], 0).to(device),
            }
            with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in run.precision):
                found = backbone.generate(padded, run.decoding)
            for place, text in zip(places, found, strict=True):
                texts[place] = text
        return texts

    return generate


def make_datamodule(run: ExportedRun, tokenizer: Any) -> DialogSumDataModule:
    """Make the data module that turns rows into the run's prompts.

    Raises:
        ValueError: If its settings are invalid, or the prompt does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DialogSumDataModule, "data")
    arguments = {"source": "mini"} | run.data | {"tokenizer": tokenizer.name_or_path}
    made = {"class_path": "datamodules.DialogSumDataModule", "init_args": arguments}
    try:
        data: DialogSumDataModule = parser.instantiate(parser.parse_object({"data": made})).data
    except ArgumentError as error:
        raise ValueError(f"{run.name}: {error}") from error
    data.tokenizer = tokenizer
    _ = data.encoder  # fails here if the prompt does not fit
    return data


def find_device(name: str) -> torch.device:
    """Return a device; ``auto`` is the accelerator if there is one, and otherwise the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available ({error})") from error
