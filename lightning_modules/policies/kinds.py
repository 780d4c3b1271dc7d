"""What of the backbone is the policy, and what stands for the reference that it started from."""

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
    """Puts a policy on a backbone; policy and reference are the same function at step 0."""

    @abstractmethod
    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Make the policy.

        Args:
            backbone: The pretrained model; it becomes a part of the policy.
            adapter: Export folder of the adapter to start from, or None.

        Returns:
            The policy, and a model of its own for the reference, or None where adapters hold it.
        """

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Say why this kind cannot start from an adapter, or return None where it can."""
        return None

    def finish(self, model: Any) -> Any:
        """Give the model to export; an adapter by itself where that is enough."""
        return model


class LoRAPolicy(PolicyKind):
    r"""A LoRA on the frozen backbone: fresh, or a trained one to go on with.

    The reference of a fresh one is the backbone with adapters off, that of a trained one is that
    adapter, frozen, beside it. Either way there is one backbone in memory.

    Args:
        r: Rank of a fresh LoRA's updates; a trained one has its own shape.
        alpha: Numerator of their scale.
        target_modules: Layers that get one, as PEFT takes them. With layers of the decoder only,
            such as ``.*decoder.*\.(q|v)``, the encoder runs once for policy, reference, all samples
            and all epochs.
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
        # No dropout: rollout and update are to see one function.
        self.lora = LoRASettings(r, alpha, 0.0, target_modules, use_dora, use_rslora)

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Attach it."""
        if adapter is not None:
            return attach_trained_lora(backbone, adapter), None
        return attach_lora(backbone, self.lora), None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Say why an adapter cannot be gone on with."""
        return None if adapter is None else find_adapter_problem(adapter, backbone)


class MergedPolicy(LoRAPolicy):
    """A fresh LoRA on a backbone into which a trained one was merged.

    The reference is the merged backbone with adapters off. What is exported is a whole model.

    Args:
        r: Rank of the fresh LoRA.
        alpha: Numerator of its scale.
        target_modules: See :class:`LoRAPolicy`.
        use_dora: See :class:`LoRASettings`.
        use_rslora: See :class:`LoRASettings`.
    """

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Merge, and attach."""
        if adapter is None:
            raise ValueError(self.find_problem(adapter, ""))
        merged = merge_adapter(load_adapters(backbone, {POLICY: adapter}))
        return attach_lora(merged, self.lora), None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Say why there is nothing to merge."""
        if adapter is None:
            return "policy: MergedPolicy merges a trained adapter; name one with --model.adapter"
        return super().find_problem(adapter, backbone)

    def finish(self, model: Any) -> Any:
        """Merge the policy too: as an adapter it would need a backbone that exists nowhere."""
        return merge_adapter(copy.deepcopy(model))


class SoftPromptPolicy(PolicyKind):
    """A soft prompt before a frozen backbone; its reference is a frozen copy of how it began.

    Not the backbone alone: a soft prompt changes the model from the start.

    Args:
        virtual_tokens: Number of trained vectors.
        init: Where those of a fresh one start: ``random``, ``vocabulary`` or ``text``.
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
        """Attach it, and the copy."""
        model = attach_soft_prompt(backbone, self.virtual_tokens, self.init, self.init_text)
        if adapter is not None:
            # PEFT refuses to load a soft prompt for training, so its weights are taken over.
            with reading(adapter):
                trained = PeftModel.from_pretrained(backbone, adapter)
            settle_backbone(trained, adapter)
            start = trained.prompt_encoder[trained.active_adapter].state_dict()
            model.prompt_encoder[model.active_adapter].load_state_dict(start)
        attach_soft_prompt_reference(model)
        return model, None

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Say why an adapter is no soft prompt for this backbone."""
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
    """Every weight is trained; the reference is a frozen copy of the backbone.

    To start from a tuned model, name its export as the backbone. It is the costliest kind: two
    models in memory, and Adam's state for all of one.

    Args:
        train_encoder: Off, encoder and embeddings stay frozen and are shared with the reference.
    """

    def __init__(self, train_encoder: bool = True) -> None:
        self.train_encoder = train_encoder

    def attach(
        self, backbone: PreTrainedModel, adapter: str | None
    ) -> tuple[nn.Module, nn.Module | None]:
        """Copy the reference, and train the rest."""
        model: Any = backbone
        model.requires_grad_(True)
        shared: dict[int, Any] = {}
        if not self.train_encoder:
            for part in context_modules(model):
                part.requires_grad_(False)
                # deepcopy takes what it finds here for copies that it has made already.
                shared |= {id(p): p for p in part.parameters()}
        reference = copy.deepcopy(model, shared)
        return model, reference.requires_grad_(False)

    def find_problem(self, adapter: str | None, backbone: str) -> str | None:
        """Say that there is no adapter to start from."""
        if adapter is None:
            return None
        return (
            f"policy: FullPolicy trains whole weights and cannot start from the adapter "
            f"{adapter!r}; merge it first (python merge.py) and name the result as model.backbone"
        )
