"""What a method's ``configure_model`` would load, made on the meta device: no weights are read."""

from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.adapters import POLICY, REFERENCE, attach_lora
from lightning_modules.backbones import checkpoint_activations, set_dropout
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.policy_kinds import LoRAPolicy, MergedPolicy, SoftPromptPolicy
from lightning_modules.ppo.reward_terms import ClassifierReward
from lightning_modules.reward_model import RewardModel
from planning.shapes import Blueprint, build_classifier, build_seq2seq, find_blueprint


def build_model(module: Any, blueprint: Blueprint) -> nn.Module:
    """Make what ``configure_model`` would load: the backbone with what the method adds to it."""
    if isinstance(module, RewardModel):
        model: nn.Module = build_classifier(blueprint, labels=1)
        if module.dropout is not None:
            set_dropout(model, module.dropout)
    else:
        backbone = build_seq2seq(blueprint)
        if module.dropout is not None:
            set_dropout(backbone, module.dropout)
        model = attach_fresh(module, backbone)
    if getattr(module, "gradient_checkpointing", False):
        checkpoint_activations(model)
    return model.train()


def build_judges(module: Any, judge: str | None) -> list[nn.Module]:
    """Make the frozen classifiers: PPO's reward model, then the one that measures toxicity."""
    names: list[str] = []
    if isinstance(module, PPOPolicy):
        terms = module.terms.values()
        names += [term.model for term in terms if isinstance(term, ClassifierReward)]
    if judge and module.generates:
        names.append(judge)
    models = [build_classifier(find_blueprint(name, "classifier")).eval() for name in names]
    return [model.requires_grad_(False) for model in models]


def attach_fresh(module: Any, backbone: PreTrainedModel) -> nn.Module:
    """Attach a method's adapter without reading any weights or any tokenizer.

    Where it starts from, a text or another run's export, changes nothing about its size.
    """
    if isinstance(module, PPOPolicy):
        return attach_policy(module, backbone)
    for name, value in (("adapter", None), ("init", "random"), ("init_text", None)):
        if hasattr(module, name):
            setattr(module, name, value)
    return module.attach(backbone)


def attach_policy(module: PPOPolicy, backbone: PreTrainedModel) -> nn.Module:
    """Attach a policy, and the reference where it is a model or an adapter of its own."""
    kind, start = module.policy, module.adapter
    if isinstance(kind, MergedPolicy):
        model: Any = attach_lora(backbone, kind.lora)
    elif isinstance(kind, LoRAPolicy) and start is not None:
        model = get_peft_model(backbone, LoraConfig.from_pretrained(start), adapter_name=POLICY)
        model.add_adapter(REFERENCE, LoraConfig.from_pretrained(start))
        model.set_adapter(POLICY)
    else:
        if isinstance(kind, SoftPromptPolicy):
            module.policy = SoftPromptPolicy(kind.virtual_tokens, "random")
        module.adapter = None
        return module.attach(backbone)
    set_dropout(model, 0.0)
    return model


def find_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Give the units that a sharded strategy gathers one after the other: blocks, embeddings."""
    for child in model.modules():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif isinstance(child, nn.Embedding):
            yield child


def count_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
