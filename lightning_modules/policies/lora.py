"""Attach a LoRA to a backbone, new or exported."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_modules.backbones import task_type
from lightning_modules.policies.adapters import (
    POLICY,
    REFERENCE,
    check_weights,
    fitting,
    read_adapter_config,
    settle_backbone,
)

ALL_LINEAR = "all-linear"
"""PEFT's name for all linear layers except the output head."""

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)

Targets = Sequence[str] | str
"""A list of ends of layer names, a regular expression over whole names, or ``all-linear``."""


@dataclass(frozen=True)
class LoRASettings:
    """Shape of a LoRA.

    Args:
        r: Rank of the updates.
        alpha: Numerator of their scale: alpha / r, or alpha / sqrt(r) with ``use_rslora``.
        dropout: Dropout on their input.
        target_modules: The layers to adapt, in PEFT's syntax: ends of names (for T5 ``q``,
            ``k``, ``v``, ``o``, ``wi_0``, ``wi_1``, ``wo``), a regular expression over whole names,
            or ``all-linear``.
        use_dora: Train the norm of each row of the adapted matrix separately (DoRA).
        use_rslora: Scale by alpha / sqrt(r), which does not shrink the updates of high ranks.

    Raises:
        ValueError: If a setting is out of range.
    """

    r: int = 32
    alpha: int = 32
    dropout: float = 0.0
    target_modules: Targets = ("q", "v")
    use_dora: bool = False
    use_rslora: bool = False

    def __post_init__(self) -> None:
        problems = [find_pattern_problem(self.target_modules)]
        if self.r < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            problems.append(
                "LoRA needs r >= 1, alpha >= 1 and dropout in [0, 1), "
                f"got r {self.r}, alpha {self.alpha}, dropout {self.dropout}"
            )
        if found := [problem for problem in problems if problem]:
            raise ValueError("; ".join(found))


def attach_lora(backbone: PreTrainedModel, settings: LoRASettings) -> PeftModel:
    """Freeze a backbone and add low-rank updates to some of its layers.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685,
    equation 3: h = W x + s B A x with s = alpha / r, and B = 0 at the start, so that a new LoRA
    changes nothing. rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) uses s = alpha / sqrt(r). DoRA
    (Liu et al. 2024, arXiv 2402.09353, equation 5) replaces the matrix by
    m (W + s B A) / |W + s B A|, with a trained norm m for each output that starts as |W|.

    Args:
        backbone: The model to adapt; its weights are frozen in place.
        settings: The shape of the updates.

    Raises:
        ValueError: If a target matches no layer, or a layer that LoRA cannot adapt.
    """
    targets = settings.target_modules
    problem = find_target_problem(backbone, targets) or find_shared_problem(backbone, targets)
    if problem:
        raise ValueError(problem)
    config = LoraConfig(
        task_type=task_type(backbone),
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )
    return get_peft_model(backbone, config, adapter_name=POLICY)


def continue_lora(backbone: PreTrainedModel, path: str, settings: LoRASettings) -> PeftModel:
    """Load an exported LoRA to continue its training.

    Args:
        backbone: The model that it was trained on; its weights are frozen in place.
        path: Folder written by ``save_pretrained`` of a LoRA.
        settings: Its shape; the dropout may differ.

    Raises:
        ValueError: If the adapter has another shape.
    """
    if problem := find_shape_problem(backbone, path, settings):
        raise ValueError(problem)
    config = LoraConfig.from_pretrained(path)
    config.lora_dropout = settings.dropout
    with fitting(path):
        model = PeftModel.from_pretrained(
            backbone, path, POLICY, is_trainable=True, config=config, torch_device="cpu"
        )
        check_weights(model, POLICY, path)
    settle_backbone(model, path)
    return model


def attach_trained_lora(backbone: PreTrainedModel, path: str) -> PeftModel:
    """Load an exported LoRA twice on one backbone: trainable, and frozen as the reference.

    A policy that starts from a trained adapter needs that adapter as its reference, not the
    backbone with adapters off: otherwise the KL at step 0 is not 0. Both share one backbone.

    Args:
        backbone: The model that the adapter was trained on.
        path: Folder written by ``save_pretrained`` of a LoRA.

    Raises:
        ValueError: If its weights do not fit the backbone.
    """
    with fitting(path):
        model = PeftModel.from_pretrained(backbone, path, adapter_name=POLICY, is_trainable=True)
        model.load_adapter(path, adapter_name=REFERENCE, is_trainable=False)
        check_weights(model, POLICY, path)
    settle_backbone(model, path)
    model.set_adapter(POLICY)
    return model


def find_shape_problem(model: PreTrainedModel, path: str, settings: LoRASettings) -> str | None:
    """Say where an exported LoRA has another shape than the settings, or return None.

    Args:
        model: The backbone; on the meta device will do.
        path: Export folder of the LoRA.
        settings: What this run was told.
    """
    config = read_adapter_config(path) or {}
    its: dict[str, Any] = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    # Files of an older PEFT lack the younger settings.
    its |= {name: config.get(name, False) for name in ("use_dora", "use_rslora")}
    differing = {name: value for name, value in its.items() if value != getattr(settings, name)}
    targets = config.get("target_modules") or []
    if set(match_targets(model, targets)) != set(match_targets(model, settings.target_modules)):
        differing["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    if not differing:
        return None
    wanted = ", ".join(f"{name} {value}" for name, value in differing.items())
    mine = ", ".join(f"{name} {getattr(settings, name)}" for name in differing)
    return f"adapter: {path!r} has {wanted}, and this run says {mine}; a LoRA keeps its shape"


def find_pattern_problem(targets: Targets) -> str | None:
    """Say what is wrong with targets whatever the model, or return None where nothing is."""
    if not targets or not all(targets):
        return "target_modules is empty; name the layers to adapt, for T5 for example [q, v]"
    if isinstance(targets, str) and targets.lower() != ALL_LINEAR:
        try:
            re.compile(targets)
        except re.error as error:
            return f"target_modules: {targets!r} is no regular expression ({error})"
    return None


def match_targets(model: PreTrainedModel, targets: Targets) -> dict[str, nn.Module]:
    """Find the modules that PEFT would wrap, by name.

    As PEFT does: a list holds whole names or ends of names (``v`` fits ``...SelfAttention.v``), a
    string is a regular expression that the whole name has to fit, and ``all-linear`` is every
    linear layer but the output head.
    """
    modules = dict(model.named_modules())
    if not isinstance(targets, str):
        return {name: modules[name] for name in modules if _fits(name, targets)}
    if targets.lower() != ALL_LINEAR:
        return {name: modules[name] for name in modules if re.fullmatch(targets, name)}
    head = model.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    return {n: m for n, m in modules.items() if isinstance(m, linear) and m is not head}


def find_target_problem(model: PreTrainedModel, targets: Targets) -> str | None:
    """Explain why a LoRA cannot adapt these layers of a model, or return None.

    PEFT accepts a list if one of its names matches, and silently ignores the others.

    Args:
        model: A backbone, possibly on the meta device.
        targets: See :data:`Targets`.
    """
    if problem := find_pattern_problem(targets):
        return problem
    matched = match_targets(model, targets)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    missing = wanted if not matched else []
    if not isinstance(targets, str):
        missing = [target for target in targets if not any(_fits(n, [target]) for n in matched)]
    if missing:
        return f"target_modules: no layer is named {missing}; {_describe(model)}"
    for name, module in matched.items():
        if not isinstance(module, _ADAPTABLE):
            return (
                f"target_modules: {targets!r} fits {name!r}, a {type(module).__name__}, which LoRA "
                f"cannot adapt; {_describe(model)}, and a regular expression has to fit whole names"
                r", as .*decoder.*\.(q|v) does"
            )
    return None


def find_shared_problem(model: PreTrainedModel, targets: Targets) -> str | None:
    """Name a targeted layer that shares its matrix with another, or return None.

    T5's encoder and decoder share one embedding matrix, and T5 v1.0 also uses it as output head. A
    LoRA of one user does not apply to the others, so it cannot be merged into the shared matrix.
    """
    users = Counter(id(m.weight) for m in model.modules() if isinstance(m, _ADAPTABLE))
    for name, module in match_targets(model, targets).items():
        if users[id(module.weight)] > 1:
            return (
                f"target_modules: {name!r} shares its matrix with other layers, so a LoRA of it "
                "alone could not be merged; leave it out"
            )
    return None


def _fits(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _describe(model: PreTrainedModel) -> str:
    ends = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, _ADAPTABLE)}
    return f"the layers' names end in {', '.join(sorted(ends))}"
