"""What a run leaves: checkpoints of trained weights, and exports in the Hugging Face format."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from common import hub
from lightning_modules.policies.adapters import POLICY


def check_origin(checkpoint: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Refuse a checkpoint of another method or backbone.

    Args:
        checkpoint: With the origin of its run under "alignsum".
        own: "method" and "backbone" (full path) of this run.

    Raises:
        ValueError: If they differ, unless the checkpoint's backbone has moved.
    """
    origin = dict(checkpoint.get("alignsum", {}))
    old, new = str(origin.get("backbone")), own["backbone"]
    if old != new and hub.is_gone(old):
        hub.warn_of_move("the checkpoint", old, new)
        origin["backbone"] = new
    if origin != own:
        raise ValueError(
            f"this checkpoint is of {origin or 'another program'}, this run is {own}; a checkpoint "
            "resumes or tests its own run. To start from another run's result, name its export "
            "folder (model.backbone or model.adapter)"
        )


def check_weights(checkpoint: Mapping[str, Any], trained: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a checkpoint whose weights are not exactly the trained ones, by name and shape.

    Raises:
        ValueError: If a weight differs.
    """
    own = {name: tuple(weight.shape) for name, weight in trained}
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    differing = {name for name in own | saved if own.get(name) != saved.get(name)}
    if differing:
        raise ValueError(
            f"the checkpoint and this model train different weights ({len(differing)} of them, "
            f"such as {min(differing)}); use the settings in the run folder's config.yaml"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, saved: frozenset[str]) -> None:
    """Refuse to resume with the state of another kind of optimizer, which torch would load.

    Args:
        optimizer: The run's optimizer.
        saved: Names of the settings in the checkpoint's; empty without a checkpoint.

    Raises:
        ValueError: If settings of this optimizer are missing there.
    """
    missing = [name for name in optimizer.defaults if name not in saved]
    if saved and missing:
        raise ValueError(
            f"model.optimizer: the checkpoint was saved with a different optimizer than "
            f"{type(optimizer).__name__}: its state has no {', '.join(missing)}. Resume with the "
            "run's optimizer (see config.yaml in its folder), or start a new run from its export"
        )


def save_model(
    model: Any, tokenizer: Any, path: str | Path, state: Mapping[str, Tensor] | None
) -> None:
    """Write a model in the Hugging Face format, for a plain ``from_pretrained``.

    An adapter's folder holds the trained adapter alone and names its backbone; a full model comes
    with its tokenizer.

    Args:
        model: A transformers or PEFT model.
        tokenizer: Its tokenizer.
        path: The folder.
        state: Full weights by name, if those of the model are sharded.
    """
    if isinstance(model, PeftModel):
        # The adapters never touch the embeddings; PEFT would ask the hub whether they did.
        model.save_pretrained(
            str(path), selected_adapters=[POLICY], save_embedding_layers=False, state_dict=state
        )
    else:
        model.save_pretrained(path, state_dict=state)
        tokenizer.save_pretrained(path)
