"""Kinds of policies: what is trained, and what serves as the reference."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, PeftModel, PromptTuningConfig
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.backbones import context_modules, train_all
from lightning_modules.policies.adapters import (
    attach_adapter,
    copy_as_reference,
    find_adapter_problem,
    find_config_problem,
    load_adapter,
)
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.policies.soft_prompt import SoftPromptSettings, Start, attach_soft_prompt


class PolicyKind(ABC):
    """Builds a policy and a reference that compute the same function at step 0."""

    @abstractmethod
    def attach(
        self, backbone: PreTrainedModel, adapter: str | None, needs_reference: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """Build the policy.

        Args:
            backbone: The pretrained model; it becomes a part of the policy.
            adapter: Export folder of the adapter to start from; None starts a new one.
            needs_reference: If false, no second model is made; adapters keep theirs.

        Returns:
            The policy, and the reference; None if the reference is one of the policy's adapters.
        """

    @abstractmethod
    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why this kind cannot start from an adapter, or return None."""

    def find_backbone_problem(self, backbone: str) -> str | None:
        """Explain why a new policy cannot be built on a backbone, or return None."""
        return None


class AdapterPolicy(PolicyKind):
    """An adapter of any PEFT kind on the frozen backbone: a new one, or a trained one continued.

    The reference is the backbone with adapters off for a new adapter that starts as the backbone,
    and otherwise a frozen copy of the start. In both cases one backbone is in memory.

    Args:
        config: Kind and settings of a new adapter, such as ``class_path: peft.IA3Config``. To
            continue a trained one, give its kind; its settings are kept.
    """

    def __init__(self, config: PeftConfig) -> None:
        self.config = config

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None, needs_reference: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """Attach the adapter, and its frozen copy if it needs one."""
        if adapter is None:
            model = self.attach_new(backbone)
        else:
            model = load_adapter(backbone, adapter, trainable=True)
        init = getattr(self.config, "init_lora_weights", True)
        starts_as_backbone = init in (True, "gaussian") and not self.config.is_prompt_learning
        if adapter is not None or not starts_as_backbone:
            copy_as_reference(model)
        return model, None

    def attach_new(self, backbone: PreTrainedModel) -> PeftModel:
        """Attach a new adapter."""
        return attach_adapter(backbone, self.config)

    def settings(self) -> dict[str, Any]:
        """Return the settings that a trained adapter must have, by PEFT's names."""
        return {}

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why training cannot continue from an adapter, or return None."""
        if adapter is None:
            return None
        kind = str(self.config.peft_type.value)
        return find_adapter_problem(adapter, backbone, kind, self.settings())

    def find_backbone_problem(self, backbone: str) -> str | None:
        """Explain why PEFT cannot attach the adapter to a backbone, or return None."""
        return find_config_problem(self.config, backbone)


class LoRAPolicy(AdapterPolicy):
    r"""A LoRA on the frozen backbone, without dropout; see :class:`LoRASettings`.

    Every setting that is null is that of the trained LoRA, or the default of a new one.

    Args:
        r: Rank; 32 by default.
        alpha: Numerator of the scale; 32 by default.
        target_modules: Layers to adapt, in PEFT's syntax. With decoder layers only, such as
            ``.*decoder.*\.(q|v)``, the encoder runs once for policy, reference, all samples and all
            epochs.
        use_dora: Train the norm of each row of the adapted matrices separately.
        use_rslora: Scale by alpha / sqrt(r).
        train_encoder: If false, a trained LoRA's matrices in the encoder stay as they are. The
            encoder then runs once, as it does if only decoder layers are adapted.
    """

    def __init__(
        self,
        r: int | None = None,
        alpha: int | None = None,
        # The list comes first: jsonargparse uses the first type that fits, and str always fits.
        target_modules: Sequence[str] | str | None = None,
        use_dora: bool | None = None,
        use_rslora: bool | None = None,
        train_encoder: bool = True,
    ) -> None:
        self.lora = LoRASettings(r, alpha, 0.0, target_modules, use_dora, use_rslora)
        self.train_encoder = train_encoder
        super().__init__(self.lora.config())

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None, needs_reference: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """Attach the LoRA, and freeze its encoder part if it is not to be trained."""
        model, reference = super().attach(backbone, adapter, needs_reference)
        if not self.train_encoder:
            for part in context_modules(backbone):
                part.requires_grad_(False)
        return model, reference

    def settings(self) -> dict[str, Any]:
        """Return the settings that a trained LoRA must have."""
        return self.lora.shape()


class SoftPromptPolicy(AdapterPolicy):
    """A soft prompt before a frozen backbone; the reference is a frozen copy of its start.

    Args:
        virtual_tokens: Number of trained vectors; null is that of the trained prompt, or 100.
        init: Start of a new prompt: ``random``, ``vocabulary`` or ``text``.
        init_text: The text for ``text``.
    """

    def __init__(
        self,
        virtual_tokens: int | None = None,
        init: Start = "vocabulary",
        init_text: str | None = None,
    ) -> None:
        number = 100 if virtual_tokens is None else virtual_tokens
        self.prompt = SoftPromptSettings(number, init, init_text)
        self.virtual_tokens = virtual_tokens
        super().__init__(PromptTuningConfig(num_virtual_tokens=number))

    def attach_new(self, backbone: PreTrainedModel) -> PeftModel:
        """Attach a new soft prompt."""
        return attach_soft_prompt(backbone, self.prompt)

    def settings(self) -> dict[str, Any]:
        """Return the number of vectors that a trained prompt must have."""
        return {"num_virtual_tokens": self.virtual_tokens}


class FullPolicy(PolicyKind):
    """All weights are trained; the reference is a frozen copy of the backbone.

    To start from a tuned model, set its export as the backbone. Two models and the full optimizer
    state are in memory, more than with any other kind.

    Args:
        train_encoder: If false, encoder and embeddings stay frozen and are shared with the
            reference.
    """

    def __init__(self, train_encoder: bool = True) -> None:
        self.train_encoder = train_encoder

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None, needs_reference: bool = True
    ) -> tuple[nn.Module, nn.Module | None]:
        """Unfreeze the backbone and copy the reference."""
        model: Any = backbone
        train_all(model)
        shared: dict[int, Any] = {}
        if not self.train_encoder:
            for part in context_modules(model):
                part.requires_grad_(False)
                # deepcopy reuses the objects in this table instead of copying them. FSDP needs the
                # modules to be shared too; a tied head shares a weight only.
                shared |= {id(each): each for each in (part, *part.parameters())}
        if not needs_reference:
            return model, None
        reference = copy.deepcopy(model, shared)
        return model, reference.requires_grad_(False)

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain that this kind starts from no adapter, or return None."""
        if adapter is None:
            return None
        return (
            f"policy: FullPolicy trains all weights and cannot start from the adapter "
            f"{adapter!r}; merge it first (python -m alignsum merge) and set the result as "
            "model.backbone"
        )
