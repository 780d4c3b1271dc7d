"""Load what a run exported, whatever the method: a whole model, a LoRA or a soft prompt."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import hub
from lightning_modules.adapters import POLICY, load_adapters, read_adapter_config
from lightning_modules.backbones import load_backbone


def load_exported(
    path: str | Path, backbone: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the export folder of a run, ready to generate.

    Call ``model.generate(input_ids=..., attention_mask=...)`` with named arguments: PEFT takes no
    others, and with a soft prompt it has to lengthen the mask.

    Args:
        path: Folder written by a run (``<run>/export``) or by ``merge.py``.
        backbone: What an adapter sits on, where its backbone has moved since; None takes the one
            that the adapter names.

    Returns:
        The model (a ``PreTrainedModel``, or a ``PeftModel`` for an adapter) in fp32 and eval mode,
        its output head recorded as it is, and its tokenizer.

    Raises:
        ValueError: If the folder is no export, its backbone cannot be had, or the two do not fit.
    """
    folder = Path(path).expanduser()
    if problem := find_export_problem(folder, backbone):
        raise ValueError(problem)
    adapter = read_adapter_config(folder)
    if adapter is None:
        return load_backbone(str(folder)).eval(), hub.load_tokenizer(str(folder))
    base = hub.resolve_model(backbone or adapter["base_model_name_or_path"])
    model = load_adapters(load_backbone(base), {POLICY: folder})
    return model.eval(), hub.load_tokenizer(base)


def find_export_problem(folder: Path, backbone: str | None = None) -> str | None:
    """Say why an export cannot be loaded, or return None where it can; loads nothing."""
    if not folder.is_dir():
        return f"export: there is no folder {str(folder)!r}"
    adapter = read_adapter_config(folder)
    if adapter is None:
        if backbone is not None:
            return f"export: {str(folder)!r} is a whole model, which takes no other backbone"
        if (folder / "config.json").is_file():
            return hub.find_model_problem(str(folder), "export")
        inner = folder / "export"
        hint = f"; its run's export is {str(inner)!r}" if inner.is_dir() else ""
        return (
            f"export: {str(folder)!r} holds neither config.json (a whole model) nor "
            f"adapter_config.json (an adapter){hint}"
        )
    base = backbone or adapter.get("base_model_name_or_path")
    if not base:
        return f"export: the adapter in {str(folder)!r} names no backbone; name it (backbone=)"
    if problem := hub.find_model_problem(hub.resolve_model(base), "backbone"):
        return (
            f"export: the adapter in {str(folder)!r} needs its backbone. {problem}. Where it has "
            "moved, name the new place (backbone=, or base_model_name_or_path in "
            "adapter_config.json)"
        )
    return None
