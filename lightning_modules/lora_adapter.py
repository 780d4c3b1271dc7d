"""A LoRA on a backbone: attach a fresh one, or an exported one to go on with."""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from lightning_modules.adapters import POLICY, REFERENCE
from lightning_modules.switching import (
    check_weights,
    fitting,
    read_adapter_config,
    settle_backbone,
)
from lightning_modules.targets import (
    Targets,
    find_pattern_problem,
    find_shared_problem,
    find_target_problem,
    match_targets,
)


@dataclass(frozen=True)
class LoRASettings:
    """Shape of a LoRA.

    Args:
        r: Rank of the updates.
        alpha: Numerator of their scale: alpha / r, or alpha / sqrt(r) with ``use_rslora``.
        dropout: Dropout on their input.
        target_modules: The layers that get one, as PEFT takes them: ends of names (for T5 ``q``,
            ``k``, ``v``, ``o``, ``wi_0``, ``wi_1``, ``wo``), a regular expression over whole names,
            or ``all-linear``.
        use_dora: Train the length of each row of the adapted matrix by itself (DoRA).
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
    equation 3: h = W x + s B A x with s = alpha / r, and B = 0 at the start, so that a fresh LoRA
    changes nothing. rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) takes s = alpha / sqrt(r). DoRA
    (Liu et al. 2024, arXiv 2402.09353, equation 5) takes m (W + s B A) / |W + s B A| for the whole
    matrix, with a trained length m for each output, which starts as |W|.

    Args:
        backbone: The model to adapt; its weights are frozen in place.
        settings: The shape of the updates.

    Raises:
        ValueError: If the targets fit no layer, or one that cannot be adapted.
    """
    targets = settings.target_modules
    problem = find_target_problem(backbone, targets) or find_shared_problem(backbone, targets)
    if problem:
        raise ValueError(problem)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )
    return get_peft_model(backbone, config, adapter_name=POLICY)


def continue_lora(backbone: PreTrainedModel, path: str, settings: LoRASettings) -> PeftModel:
    """Load an exported LoRA to go on training from.

    Args:
        backbone: The model that it was trained on; its weights are frozen in place.
        path: Folder written by ``save_pretrained`` of a LoRA.
        settings: Its shape; the dropout may be another.

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
    """Load an exported LoRA twice on one backbone: to train on, and frozen as the reference.

    The reference of a policy that starts from a trained adapter is that adapter, not the backbone
    with adapters off: only then is the KL 0 at step 0. The two share the backbone's memory.

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
