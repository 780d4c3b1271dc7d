"""What a run leaves: checkpoints of trained weights, and exports in the Hugging Face format."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from common import hub
from lightning_modules.policies.adapters import POLICY


def check_checkpoint(
    checkpoint: Mapping[str, Any], own: Mapping[str, str], trained: Iterable[tuple[str, Tensor]]
) -> None:
    """Refuse a checkpoint of another method or backbone, or with other trained weights.

    Args:
        checkpoint: With the origin of its run under "alignsum".
        own: "method" and "backbone" (full path) of this run.
        trained: This run's trained weights by name.

    Raises:
        ValueError: If they differ, unless only the path of the backbone has changed.
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
    shapes = {name: weight.shape for name, weight in trained}
    saved = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    differing = {name for name in shapes | saved if shapes.get(name) != saved.get(name)}
    if differing:
        raise ValueError(
            f"the checkpoint and this model train different weights ({len(differing)} of them, "
            f"such as {min(differing)}); use the settings in the run folder's config.yaml"
        )


def save_model(
    model: Any, tokenizer: Any, path: str | Path, state: Mapping[str, Tensor] | None
) -> None:
    """Write a model and its tokenizer in the Hugging Face format, for ``from_pretrained``.

    An adapter's folder contains only the trained adapter and names its backbone.

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
