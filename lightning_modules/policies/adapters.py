"""Adapters on one backbone: load, switch and merge them; find the reference among them."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from torch import nn
from transformers import PreTrainedModel

from common.hub import is_gone, reading, resolve_model, warn_of_move
from lightning_modules.backbones import Backbone, record_head

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


@contextmanager
def reference_backbone(backbone: Backbone, reference: Any = None) -> Iterator[Backbone]:
    """Open a block in which the reference policy can be called through the backbone interface.

    The reference is a model of its own if there is one, else the frozen adapter that the policy
    started from or, for a policy that started from nothing, the backbone with adapters off. The
    policy is active again afterwards.

    Args:
        backbone: The policy.
        reference: A frozen model of its own, for a policy that is not an adapter.
    """
    if reference is not None:
        yield backbone.with_model(reference)
        return
    model = backbone.model
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None) as start:
        yield backbone.with_model(start)


def read_adapter_config(folder: str | Path) -> dict[str, Any] | None:
    """Read what PEFT wrote about an exported adapter; None where the folder holds none.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); export the adapter again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object; export the adapter again")
    return config


def load_adapters(backbone: PreTrainedModel, folders: Mapping[str, str | Path]) -> PeftModel:
    """Load exported adapters onto one backbone, frozen and in eval mode; the first is active.

    They share the backbone's memory. :func:`use_adapter` switches between them. LoRAs of any shape,
    DoRA and rsLoRA among them, can sit side by side, and so can soft prompts; PEFT cannot mix the
    two kinds.

    Args:
        backbone: The model that all of them were trained on.
        folders: Export folder of each adapter by the name that it is to have.

    Raises:
        ValueError: If there is none, they are not of one kind or backbone, or one does not fit.
    """
    configs = {name: read_adapter_config(folder) for name, folder in folders.items()}
    if missing := [str(folders[name]) for name, config in configs.items() if config is None]:
        raise ValueError(f"no adapter_config.json in {', '.join(missing)}: no exported adapter")
    for key, what in (("peft_type", "kind"), ("base_model_name_or_path", "backbone")):
        values = {name: str((config or {}).get(key)) for name, config in configs.items()}
        if len(set(values.values())) != 1:
            raise ValueError(
                f"a backbone takes one adapter or more, all of one {what}; got {values or 'none'}"
            )
    if bad := find_bad_names(backbone, folders):
        raise ValueError(
            f"adapter names {bad}: they become parts of the weights' names, so they may not be "
            "empty, have dots or be names of layers; choose others"
        )
    (first, folder), *others = folders.items()
    with fitting(folder):
        model = PeftModel.from_pretrained(backbone, str(folder), first, torch_device="cpu")
        check_weights(model, first, folder)
    settle_backbone(model, folder)
    for name, folder in others:
        with fitting(folder):
            model.load_adapter(str(folder), name, torch_device="cpu")
            check_weights(model, name, folder)
    return model.requires_grad_(False).eval()


def find_bad_names(backbone: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """List the names that torch refuses, or that PEFT would find in the names of other weights."""
    parts = {part for name, _ in backbone.named_modules() for part in name.split(".")}
    return [name for name in names if "." in name or name in parts]


def check_weights(model: PeftModel, name: str, folder: str | Path) -> None:
    """Refuse an adapter whose file lacks weights, or has others; PEFT warns of the first at most.

    Raises:
        ValueError: With an example of the weights.
    """
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if differing := own.keys() ^ load_peft_weights(str(folder), device="cpu").keys():
        raise ValueError(f"{len(differing)} weights differ, such as {min(differing)}")


def settle_backbone(model: PeftModel, folder: str | Path) -> None:
    """Have the adapters of a model name the backbone that they are on, should it have moved.

    An exported adapter names its backbone by an absolute path where it is a folder. On another
    machine, or behind a move, whoever loads it says where the backbone is now. That it is the same
    model nobody can tell from a path, so it is said.

    Args:
        model: A backbone with adapters.
        folder: Where they were loaded from.
    """
    place = model.get_base_model().name_or_path
    for config in model.peft_config.values():
        made_on = str(config.base_model_name_or_path)
        if resolve_model(made_on) != place:
            warn_of_move(f"the adapter in {folder}", made_on, place)
        config.base_model_name_or_path = place


@contextmanager
def fitting(folder: str | Path) -> Iterator[None]:
    """Turn what PEFT and torch say of weights of another shape into one clear error."""
    with reading(folder):
        try:
            with warnings.catch_warnings():
                # What they warn of is checked here, and an error.
                warnings.filterwarnings("ignore", message=".*missing adapter keys")
                warnings.filterwarnings("ignore", message="Adapter name .* should not be contained")
                yield
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the adapter in {folder} does not fit the backbone: {said}"
            ) from error


@contextmanager
def use_adapter(model: PeftModel, name: str | None) -> Iterator[Any]:
    """Open a block in which a model computes with one of its adapters, or with none of them.

    Forward and ``generate`` of the yielded model follow alike, which PEFT's ``disable_adapter()``
    does not achieve for soft prompts. Blocks may be nested. Afterwards the same adapter is active
    and the same weights are trained as before; inside nothing is trained.

    Args:
        model: A backbone with adapters.
        name: The adapter to compute with; None is the backbone alone.

    Yields:
        The model to compute with.

    Raises:
        ValueError: If the model has no adapter of this name.
    """
    if name is not None and name not in model.peft_config:
        raise ValueError(f"there is no adapter {name!r}; there are {', '.join(model.peft_config)}")
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    switch = _switch_prompt if model.active_peft_config.is_prompt_learning else _switch_lora
    try:
        with switch(model, name) as active:
            yield active
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)


@contextmanager
def _switch_lora(model: PeftModel, name: str | None) -> Iterator[Any]:
    tuner, before = model.base_model, model.active_adapter
    together = list(tuner.active_adapters)
    was_enabled = model.get_model_status().enabled is True
    try:
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            model.set_adapter(name, inference_mode=True)
        yield model
    finally:
        tuner.enable_adapter_layers()
        model.set_adapter(before, inference_mode=True)
        tuner.set_adapter(together, inference_mode=True)
        if not was_enabled:
            tuner.disable_adapter_layers()


@contextmanager
def _switch_prompt(model: PeftModel, name: str | None) -> Iterator[Any]:
    before = model.active_adapter
    try:
        if name is not None:
            model.set_adapter(name, inference_mode=True)
        yield model.get_base_model() if name is None else model
    finally:
        model.set_adapter(before, inference_mode=True)


def merge_adapter(model: PeftModel, name: str | None = None) -> PreTrainedModel:
    """Merge a LoRA into the weights of its backbone: the same function, without adapters.

    The model that was given is used up. The output head stays as it is, tied or untied.

    Args:
        model: A backbone with a LoRA.
        name: The adapter to merge; None takes the active one. Others are dropped.

    Raises:
        ValueError: If it is a soft prompt, there is no such adapter, or its weights are not finite.
    """
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            "a soft prompt cannot be merged into weights: it is a part of the input. Use its "
            "export as it is"
        )
    if name is not None and name not in model.peft_config:
        raise ValueError(f"there is no adapter {name!r}; there are {', '.join(model.peft_config)}")
    names = None if name is None else [name]
    merged = model.merge_and_unload(safe_merge=True, adapter_names=names)
    record_head(merged)
    return merged
