"""Kinds of policies: what is trained, and what serves as the reference."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from common.hub import reading
from lightning_modules.backbones import context_modules
from lightning_modules.policies.adapters import (
    POLICY,
    find_adapter_problem,
    load_adapters,
    merge_adapter,
    read_adapter_config,
    settle_backbone,
)
from lightning_modules.policies.lora import LoRASettings, attach_lora, attach_trained_lora
from lightning_modules.policies.soft_prompt import (
    Start,
    attach_soft_prompt,
    attach_soft_prompt_reference,
    find_start_problem,
)


class PolicyKind(ABC):
    """Builds a policy and a reference that compute the same function at step 0."""

    @abstractmethod
    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Build the policy.

        Args:
            backbone: The pretrained model; it becomes a part of the policy.
            adapter: Export folder of the adapter to start from; None starts a new one.

        Returns:
            The policy, and the reference; None if the reference is one of the policy's adapters.
        """

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why this kind cannot start from an adapter, or return None."""
        return None

    def finish(self, model: Any) -> Any:
        """Return the model to export, an adapter if that suffices."""
        return model


class LoRAPolicy(PolicyKind):
    r"""A LoRA on the frozen backbone: a new one, or the continuation of a trained one.

    The reference of a new LoRA is the backbone with adapters off; that of a trained one is a frozen
    copy of it on the same backbone. In both cases there is one backbone in memory.

    Args:
        r: Rank of a new LoRA; a trained one keeps its shape.
        alpha: Numerator of its scale.
        target_modules: Layers to adapt, in PEFT's syntax. With decoder layers only, such as
            ``.*decoder.*\.(q|v)``, the encoder runs once for policy, reference, all samples and all
            epochs.
        use_dora: See :class:`LoRASettings`.
        use_rslora: See :class:`LoRASettings`.
    """

    def __init__(
        self,
        r: int = 32,
        alpha: int = 32,
        target_modules: Sequence[str] | str = ("q", "v"),
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> None:
        # No dropout, so that rollout and update compute the same function.
        self.lora = LoRASettings(r, alpha, 0.0, target_modules, use_dora, use_rslora)

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Attach the LoRA."""
        if adapter is not None:
            return attach_trained_lora(backbone, adapter), None
        return attach_lora(backbone, self.lora), None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why training cannot continue from an adapter, or return None."""
        return None if adapter is None else find_adapter_problem(adapter, backbone)


class MergedPolicy(LoRAPolicy):
    """A new LoRA on a backbone into which a trained one was merged.

    The reference is the merged backbone with adapters off. The export is a complete model.

    Args:
        r: Rank of the new LoRA.
        alpha: Numerator of its scale.
        target_modules: See :class:`LoRAPolicy`.
        use_dora: See :class:`LoRASettings`.
        use_rslora: See :class:`LoRASettings`.
    """

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Merge the trained LoRA and attach a new one."""
        if adapter is None:
            raise ValueError(self.find_problem(adapter, ""))
        merged = merge_adapter(load_adapters(backbone, {POLICY: adapter}))
        return attach_lora(merged, self.lora), None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why there is nothing to merge, or return None."""
        if adapter is None:
            return "policy: MergedPolicy merges a trained adapter; name one with --model.adapter"
        return super().find_problem(adapter, backbone)

    def finish(self, model: Any) -> Any:
        """Merge the policy as well, because its backbone is not saved anywhere."""
        return merge_adapter(copy.deepcopy(model))


class SoftPromptPolicy(PolicyKind):
    """A soft prompt before a frozen backbone; the reference is a frozen copy of its start.

    The backbone alone cannot be the reference, because even a new soft prompt changes the output.

    Args:
        virtual_tokens: Number of trained vectors.
        init: Start of a new prompt: ``random``, ``vocabulary`` or ``text``.
        init_text: The text for ``text``.
    """

    def __init__(
        self,
        virtual_tokens: int = 100,
        init: Start = "vocabulary",
        init_text: str | None = None,
    ) -> None:
        if problem := find_start_problem(virtual_tokens, init, init_text):
            raise ValueError(problem)
        self.virtual_tokens = virtual_tokens
        self.init: Start = init
        self.init_text = init_text

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Attach the prompt and the frozen copy."""
        model = attach_soft_prompt(backbone, self.virtual_tokens, self.init, self.init_text)
        if adapter is not None:
            # PEFT refuses to load a soft prompt for training, so its weights are copied.
            with reading(adapter):
                trained = PeftModel.from_pretrained(backbone, adapter)
            settle_backbone(trained, adapter)
            start = trained.prompt_encoder[trained.active_adapter].state_dict()
            model.prompt_encoder[model.active_adapter].load_state_dict(start)
        attach_soft_prompt_reference(model)
        return model, None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Explain why an adapter is not a soft prompt for this backbone, or return None."""
        if adapter is None:
            return None
        if problem := find_adapter_problem(adapter, backbone, "PROMPT_TUNING"):
            return problem
        its = (read_adapter_config(adapter) or {}).get("num_virtual_tokens")
        if its == self.virtual_tokens:
            return None
        return (
            f"adapter: {adapter!r} has {its} virtual tokens, and this run says "
            f"{self.virtual_tokens}; set --model.policy.virtual_tokens {its}"
        )


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
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Unfreeze the backbone and copy the reference."""
        model: Any = backbone
        model.requires_grad_(True)
        shared: dict[int, Any] = {}
        if not self.train_encoder:
            for part in context_modules(model):
                part.requires_grad_(False)
                # deepcopy reuses the objects in this table instead of copying them. FSDP needs the
                # modules to be shared too; a tied head shares a weight only.
                shared |= {id(each): each for each in (part, *part.parameters())}
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
