"""What adapters of every kind have in common: names, the reference among them, what is trained.

How one is attached: :mod:`~.lora_adapter`, :mod:`~.soft_prompt_adapter`. How exported ones are
loaded, switched and merged: :mod:`~.switching`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from common.hub import is_gone, resolve_model
from lightning_modules.switching import (
    load_adapters,
    merge_adapter,
    read_adapter_config,
    use_adapter,
)

__all__ = [
    "POLICY", "REFERENCE", "count_parameters", "encoder_is_trained", "find_adapter_problem",
    "find_virtual_tokens", "load_adapters", "merge_adapter", "read_adapter_config",
    "reference_policy", "unwrap", "use_adapter",
]  # fmt: skip

POLICY = "default"
"""Name of the adapter that is trained; PEFT writes the one of this name at a folder's top."""

REFERENCE = "reference"
"""Name of the frozen adapter that a policy started from."""


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trained parameters and all of them; one that is shared counts once."""
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
    )


def find_adapter_problem(path: str, backbone: str, kind: str = "LORA") -> str | None:
    """Say why an exported adapter cannot start a run on this backbone; None where it can.

    One whose backbone was a folder that is not on this machine can start on whatever backbone is
    named; see :func:`~.switching.settle_backbone`.

    Args:
        path: The adapter's export folder.
        backbone: The backbone of the run.
        kind: What PEFT calls the kind of adapter that is wanted.
    """
    config = read_adapter_config(path)
    if config is None:
        return (
            f"adapter: {path!r} is no exported adapter (no adapter_config.json in it); "
            "name the export folder of a run, such as runs/lora/export"
        )
    if config.get("peft_type") != kind:
        return f"adapter: {path!r} is a {config.get('peft_type')} adapter; here {kind} is wanted"
    made_on, wanted = str(config.get("base_model_name_or_path")), resolve_model(backbone)
    if resolve_model(made_on) == wanted or is_gone(made_on):
        return None
    return (
        f"adapter: {path!r} was trained on {made_on!r}, and the backbone here is {wanted!r}. If it "
        "is the same model in another place, say so: write that place as base_model_name_or_path "
        f"into {str(Path(path, 'adapter_config.json'))!r}"
    )


def unwrap(model: Any) -> Any:
    """Give the encoder-decoder itself: a LoRA's layers lie in it, a soft prompt does not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def find_virtual_tokens(model: Any, rows: int) -> Tensor | None:
    """Give the active soft prompt's vectors for so many rows, [rows, V, d]; None without one."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return None
    return model.get_prompt(rows)[:, : model.active_peft_config.num_virtual_tokens]


def encoder_is_trained(model: Any) -> bool:
    """Whether anything that the encoder's output depends on is trained."""
    if find_virtual_tokens(model, 1) is not None:
        return True
    encoder = unwrap(model).get_encoder()
    return any(p.requires_grad for p in encoder.parameters())


@contextmanager
def reference_policy(model: Any, reference: Any = None) -> Iterator[Any]:
    """Give the model that computes the reference policy inside a ``with`` block.

    The reference is a model of its own if there is one, else the frozen adapter that the policy
    started from, or, for a policy that started from nothing, the backbone with adapters off. After
    the block the policy is active again.

    Args:
        model: The policy.
        reference: A frozen model of its own, for a policy that is no adapter.
    """
    if reference is not None:
        yield reference
        return
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield model
