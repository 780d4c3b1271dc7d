"""Load the export of a run of any method, and merge an adapter into its backbone."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftType
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common import hub
from common.run_folder import expand
from lightning_modules.backbones import Prompts, load_backbone, wrap_model
from lightning_modules.policies.adapters import load_adapter, merge_adapter, read_adapter_config

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest change of a log-probability by merging that is rounding, relative to the largest one."""


def load_exported(
    path: str | Path, backbone: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the export folder of a run, ready to generate.

    Call ``model.generate(input_ids=..., attention_mask=...)`` with keyword arguments: PEFT accepts
    no others, and needs the mask to extend it by a soft prompt.

    Args:
        path: Folder written by a run (``<run>/export``) or by ``python -m alignsum merge``.
        backbone: Backbone of an adapter, if it has moved since; None uses the one that the adapter
            names.

    Returns:
        The model (a ``PreTrainedModel``, or a ``PeftModel`` for an adapter) in fp32 and eval mode,
        and its tokenizer.

    Raises:
        ValueError: If the folder is not an export, or its backbone is missing or does not fit.
    """
    folder = expand(path)
    if problem := find_export_problem(folder, backbone):
        raise ValueError(problem)
    adapter = read_adapter_config(folder)
    if adapter is None:
        return load_backbone(str(folder)).eval(), hub.load_tokenizer(str(folder))
    base = hub.resolve_model(backbone or hub.find_again(adapter["base_model_name_or_path"]))
    return load_adapter(load_backbone(base), folder), hub.load_tokenizer(base)


def find_export_problem(folder: Path, backbone: str | None = None) -> str | None:
    """Explain why an export cannot be loaded, or return None if it can; loads nothing."""
    if not folder.is_dir():
        return f"export: there is no folder {str(folder)!r}"
    adapter = read_adapter_config(folder)
    if adapter is None:
        if backbone is not None:
            return f"export: {str(folder)!r} is a full model and has no backbone to replace"
        if (folder / "config.json").is_file():
            return hub.find_model_problem(str(folder), "export")
        inner = folder / "export"
        hint = f"; did you mean {str(inner)!r}?" if inner.is_dir() else ""
        return (
            f"export: {str(folder)!r} has neither config.json (a full model) nor "
            f"adapter_config.json (an adapter){hint}"
        )
    if (kind := adapter.get("peft_type")) not in PeftType.__members__:
        return f"export: PEFT does not know the adapter type {kind!r} in {str(folder)!r}"
    base = backbone or hub.find_again(str(adapter.get("base_model_name_or_path")))
    if problem := hub.find_model_problem(hub.resolve_model(base), "backbone"):
        return (
            f"export: the adapter in {str(folder)!r} needs its backbone. {problem}. If it has "
            "moved, name the new location: --backbone (in Python backbone=), or "
            "base_model_name_or_path in adapter_config.json"
        )
    return None


def merge_export(path: str | Path, out: str | Path, backbone: str | None = None) -> float:
    """Merge an exported LoRA into its backbone and write the result as a plain model.

    Args:
        path: Export folder of a LoRA (DoRA and rsLoRA too).
        out: Folder to write; it must not exist, and is created only once it is complete.
        backbone: See :func:`load_exported`.

    Returns:
        The largest change of a log-probability of a probe, which in fp32 is rounding.

    Raises:
        ValueError: If there is nothing to merge, ``out`` exists, or outputs change by more than
            rounding.
    """
    folder, target = expand(path), expand(out)
    if problem := find_export_problem(folder, backbone):
        raise ValueError(problem)
    kind = (read_adapter_config(folder) or {}).get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{str(folder)!r} is a {kind or 'full'} model; only a LORA updates weights and can be "
            "merged. Use the export as it is"
        )
    if target.exists():
        raise ValueError(f"{str(target)!r} already exists; name another folder")
    model, tokenizer = load_exported(folder, backbone)
    before = probe(model, tokenizer)
    merged = merge_adapter(model)
    difference = float((probe(merged, tokenizer) - before).abs().max())
    if not difference <= TOLERANCE * float(before.abs().max()):
        raise ValueError(
            f"merging {str(folder)!r} would change its outputs by {difference:.3g}; nothing was "
            "written. Use the adapter as it is"
        )
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with hub.writing(partial):
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    os.replace(partial, target)
    logger.info("Merged %s into %s; outputs differ by at most %.2g", folder, target, difference)
    return difference


@torch.no_grad()
def probe(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Compute log-probabilities [1, T, V] of a model in eval mode for a fixed summary."""
    dialogue = tokenizer("#Person1#: Is the room free?\n#Person2#: From nine.", return_tensors="pt")
    summary = tokenizer("The room is free from nine.", return_tensors="pt")["input_ids"]
    prompts = Prompts(dialogue["input_ids"], dialogue["attention_mask"])
    return wrap_model(model, tokenizer).plain_distribution(prompts, summary)
