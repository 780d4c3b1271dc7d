"""PEFT adapters on a backbone: attach, load, switch and merge them."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import nn
from transformers import PreTrainedModel

from common.hub import is_gone, reading, resolve_model, warn_of_move
from lightning_modules.backbones import (
    Backbone,
    find_soft_prompt_problem,
    other_modalities,
    record_head,
    sketch_backbone,
    task_type,
)

POLICY = "default"
"""Name of the trained adapter; PEFT writes the adapter of this name to the top of a folder."""

REFERENCE = "reference"
"""Name of the frozen adapter that a policy started from."""

QUERY_AND_VALUE = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"))
"""Usual names of the projections that a LoRA adapts by default (Hu et al. 2021, table 5)."""

_UNSUPPORTED = {
    PeftType.PREFIX_TUNING: "in an encoder-decoder it reaches only the decoder (peft#1188)",
    PeftType.MULTITASK_PROMPT_TUNING: "batches have no task ids",
    PeftType.CPT: "it needs labels within the prompt",
}
"""Kinds of adapters that would train something else than they say, each with the reason."""


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trained parameters and all parameters; a shared one counts once."""
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
    )


# Attach and load --------------------------------------------------------------------------------


def attach_adapter(backbone: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freeze a backbone and attach a new adapter of any PEFT kind.

    Args:
        backbone: The model to adapt; its weights are frozen in place.
        config: Kind and settings of the adapter. Without ``target_modules`` it adapts PEFT's
            default layers of the architecture or, where PEFT has none for a LoRA, the query and
            value projections; without layers of such names, all linear layers but the head.

    Raises:
        ValueError: If a setting is out of range, or a target matches no layer.
    """
    config = copy.copy(config)
    config.task_type = task_type(backbone)
    if why := _UNSUPPORTED.get(config.peft_type):
        raise ValueError(f"{type(config).__name__} is not supported: {why}; use a soft prompt")
    if config.is_prompt_learning:
        embedding = backbone.get_input_embeddings().weight
        if not embedding.is_meta and (why := find_soft_prompt_problem(backbone)):
            raise ValueError(
                f"soft prompts do not work with {type(backbone).__name__}: {why}; use a LoRA"
            )
        # PEFT looks for these only at the top level of the backbone's config. A soft prompt needs
        # just the width.
        config.token_dim, config.num_layers = embedding.shape[1], 1
        config.num_attention_heads = 1
    weights = {name: getattr(m, "weight", None) for name, m in backbone.named_modules()}
    layers = {n.rsplit(".", 1)[-1] for n, w in weights.items() if w is not None and w.dim() == 2}
    targets = getattr(config, "target_modules", None)
    if isinstance(config, LoraConfig) and targets is None:
        usual = (set(pair) for pair in QUERY_AND_VALUE if layers.issuperset(pair))
        known = backbone.config.model_type in LORA_TARGETS
        config.target_modules = None if known else next(usual, "all-linear")
    if (others := other_modalities(backbone)) and hasattr(config, "exclude_modules"):
        config.exclude_modules = rf"({'|'.join(map(re.escape, others))})\..*"
    try:
        model = get_peft_model(backbone, config, adapter_name=POLICY)
    except (ValueError, re.error) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"PEFT refuses these settings: {said}; {_list(layers)}") from error
    # PEFT ignores names in a list that match nothing as long as another one does.
    for target in targets if isinstance(targets, list | set) else ():
        matched = model.base_model.targeted_module_names
        if not any(name == target or name.endswith(f".{target}") for name in matched):
            raise ValueError(f"target_modules: no layer is named {target!r}; {_list(layers)}")
    return model


def _list(layers: set[str]) -> str:
    return f"the layers' names end in {', '.join(sorted(layers))}"


def find_config_problem(config: PeftConfig, backbone: str) -> str | None:
    """Explain why a new adapter cannot be attached to a backbone, or return None.

    Args:
        config: Kind and settings of the adapter.
        backbone: Name of the backbone; its weights are not loaded.
    """
    trial = copy.copy(config)
    if isinstance(trial, LoraConfig):
        trial.init_lora_weights = True  # others decompose the backbone's weights
    try:
        if trial.peft_type in _UNSUPPORTED or not trial.is_prompt_learning:
            # PEFT draws the trial's weights; the run must not depend on whether it was tried.
            with torch.random.fork_rng(devices=[]):
                attach_adapter(sketch_backbone(backbone), trial)
    except ValueError as error:
        return str(error)
    return None


def load_adapter(
    backbone: PreTrainedModel, folder: str | Path, trainable: bool = False, **changes: Any
) -> PeftModel:
    """Attach an exported adapter to the backbone that it was trained on, and freeze the latter.

    Unlike ``PeftModel.from_pretrained`` this also loads soft prompts for training, and refuses
    files that lack weights or have others.

    Args:
        backbone: Its backbone. If that was a folder that has moved, the adapter takes the new path.
        folder: Export folder of the adapter.
        trainable: Train it further; otherwise it is frozen and in eval mode.
        **changes: Settings of the adapter to change, such as ``lora_dropout``.

    Raises:
        ValueError: If the weights do not fit the backbone.
    """
    config, place = PeftConfig.from_pretrained(str(folder)), backbone.name_or_path
    if resolve_model(trained_on := str(config.base_model_name_or_path)) != place:
        warn_of_move(f"the adapter in {folder}", trained_on, place)
    config.base_model_name_or_path = place
    config.inference_mode = not trainable
    for name, value in changes.items():
        setattr(config, name, value)
    if trainable and config.peft_type == PeftType.P_TUNING:
        raise ValueError(f"the P-tuning adapter in {folder} lacks its encoder; start a new one")
    with reading(folder):
        weights = load_peft_weights(str(folder), device="cpu")
        model = get_peft_model(backbone, config, adapter_name=POLICY)
    own = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    shapes = [{name: weight.shape for name, weight in each.items()} for each in (own, weights)]
    if differing := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise ValueError(
            f"the adapter in {folder} does not fit the backbone: {len(set(differing))} weights "
            f"differ, such as {differing[0]}"
        )
    set_peft_model_state_dict(model, weights, adapter_name=POLICY)
    return model if trainable else model.requires_grad_(False).eval()


def copy_as_reference(model: PeftModel) -> None:
    """Add a frozen copy of a policy's adapter to the same backbone, as its reference."""
    config = copy.copy(model.peft_config[POLICY])
    config.inference_mode = not config.is_prompt_learning
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True  # others decompose the backbone's weights once more
    model.add_adapter(REFERENCE, config)
    if config.is_prompt_learning:
        start = copy.deepcopy(model.prompt_encoder[POLICY])
        model.prompt_encoder[REFERENCE] = start.requires_grad_(False)
    else:
        start = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
        set_peft_model_state_dict(model, start, adapter_name=REFERENCE)
    model.set_adapter(POLICY)


# Exported adapters ------------------------------------------------------------------------------


def read_adapter_config(folder: str | Path) -> dict[str, Any] | None:
    """Read PEFT's description of an exported adapter, or return None if the folder has none.

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
        raise ValueError(f"{file} is not a JSON object; export the adapter again")
    return config


def find_adapter_problem(
    folder: str, backbone: str, kind: str, settings: Mapping[str, Any]
) -> str | None:
    """Explain why a run cannot start from an exported adapter, or return None.

    An adapter whose backbone was a folder that no longer exists can start on any backbone; see
    :func:`load_adapter`.

    Args:
        folder: Export folder of the adapter.
        backbone: Backbone of the run.
        kind: PEFT's name for the required kind of adapter.
        settings: By PEFT's names, what the run sets; what is not None must be the adapter's.
    """
    config = read_adapter_config(folder)
    if config is None:
        return (
            f"adapter: {folder!r} is not an exported adapter (it has no adapter_config.json); "
            "give the export folder of a run, such as runs/lora/export"
        )
    if config.get("peft_type") != kind:
        return (
            f"adapter: {folder!r} is a {config.get('peft_type')} adapter, not {kind}; "
            "choose the method that trains this kind, such as --model.policy SoftPromptPolicy"
        )
    trained_on, wanted = str(config.get("base_model_name_or_path")), resolve_model(backbone)
    if resolve_model(trained_on) != wanted and not is_gone(trained_on):
        return (
            f"adapter: {folder!r} was trained on {trained_on!r}, and the backbone here is "
            f"{wanted!r}; choose --model.backbone {trained_on}, or, if the same model has moved, "
            f"set base_model_name_or_path in {str(Path(folder, 'adapter_config.json'))!r}"
        )
    given = {name: _sorted(value) for name, value in settings.items() if value is not None}
    own = {name: _sorted(config.get(name, False)) for name in given}
    if differing := [name for name in given if own[name] != given[name]]:
        return (
            f"adapter: {folder!r} has {', '.join(f'{n} {own[n]}' for n in differing)}, and this "
            f"run says {', '.join(f'{n} {given[n]}' for n in differing)}; leave them out, or "
            "set them to the adapter's values"
        )
    return None


def _sorted(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else sorted(value)


# Switch and merge -------------------------------------------------------------------------------


@contextmanager
def reference_backbone(backbone: Backbone, reference: Any = None) -> Iterator[Backbone]:
    """Open a block in which the reference policy can be called through the backbone interface.

    The reference is a separate model if there is one, otherwise the frozen adapter that the policy
    started from or, for a policy that started as the backbone, the backbone with adapters off.

    Args:
        backbone: The policy; it is active again after the block.
        reference: A separate frozen model, for a policy that is not an adapter.
    """
    if reference is not None:
        yield backbone.with_model(reference)
        return
    model = backbone.model
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None) as start:
        yield backbone.with_model(start)


@contextmanager
def use_adapter(model: PeftModel, name: str | None) -> Iterator[Any]:
    """Open a block in which a model computes with one of its adapters, or without any.

    Forward and ``generate`` of the yielded model agree, unlike those of PEFT's
    ``disable_adapter()`` with soft prompts. Blocks may be nested. After the block the same adapter
    is active and the same weights require gradients as before.

    Args:
        model: A backbone with adapters.
        name: The adapter to compute with; None is the backbone alone.

    Yields:
        The model to compute with.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before, is_prompt = model.active_adapter, model.active_peft_config.is_prompt_learning
    was_on = is_prompt or model.get_model_status().enabled is True
    try:
        if name is not None:
            model.set_adapter(name, inference_mode=True)
        if not is_prompt:
            _switch(model, name is not None)
        yield model.get_base_model() if is_prompt and name is None else model
    finally:
        model.set_adapter(before, inference_mode=True)
        if not is_prompt:
            _switch(model, was_on)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _switch(model: PeftModel, on: bool) -> None:
    if on:
        model.base_model.enable_adapter_layers()
    else:
        model.base_model.disable_adapter_layers()


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Merge the active adapter into its backbone: the same function, without adapters.

    The given model is consumed. The output head stays as it is, tied or untied.

    Raises:
        ValueError: If it is a soft prompt, or its weights are not finite.
    """
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            "a soft prompt is part of the input and cannot be merged into weights; use its export "
            "as it is"
        )
    merged = model.merge_and_unload(safe_merge=True)
    record_head(merged)
    return merged
