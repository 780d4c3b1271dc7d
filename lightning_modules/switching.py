"""Exported adapters on one backbone: load them, switch between them, merge one into the weights."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from transformers import PreTrainedModel

from common.hub import reading, resolve_model, warn_of_move
from lightning_modules.backbones import record_head


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
def use_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Let a model compute with one of its adapters inside a ``with`` block, or with none of them.

    Forward and ``generate`` follow alike, which PEFT's ``disable_adapter()`` does not bring about
    for soft prompts: with it ``generate`` goes on with the prompt. Blocks may be nested. What was
    active and what was trained is so again after the block; inside it nothing is trained.

    Args:
        model: A backbone with adapters.
        name: The adapter to compute with; None is the backbone alone.

    Raises:
        ValueError: If the model has no adapter of this name.
    """
    if name is not None and name not in model.peft_config:
        raise ValueError(f"there is no adapter {name!r}; there are {', '.join(model.peft_config)}")
    switch = _switch_prompt if model.active_peft_config.is_prompt_learning else _switch_lora
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    try:
        with switch(model, name):
            yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)


@contextmanager
def _switch_lora(model: PeftModel, name: str | None) -> Iterator[None]:
    tuner = model.base_model
    before, active, off = model.active_adapter, tuner.active_adapters, model._adapters_disabled
    try:
        model._adapters_disabled = name is None
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            model.set_adapter(name, inference_mode=True)
        yield
    finally:
        # Several may have been active together: PeftModel.set_adapter takes one name only.
        tuner.enable_adapter_layers()
        tuner.set_adapter(active, inference_mode=True)
        if off:
            tuner.disable_adapter_layers()
        model.active_adapter, model._adapters_disabled = before, off


@contextmanager
def _switch_prompt(model: PeftModel, name: str | None) -> Iterator[None]:
    # Methods set on the instance go before those of its class; PEFT sets forward in this way.
    before = model.active_adapter
    methods = {key: model.__dict__.pop(key, None) for key in ("forward", "generate")}
    try:
        if name is None:
            base = model.get_base_model()
            model.forward, model.generate = base.forward, base.generate
        else:
            model.active_adapter = name
        yield
    finally:
        model.active_adapter = before
        for key, method in methods.items():
            model.__dict__.pop(key, None)
            if method is not None:
                model.__dict__[key] = method


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
