"""What a method's ``configure_model`` would load, made on the meta device: no weights are read."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_modules.backbones import set_dropout
from lightning_modules.base import BaseModule
from lightning_modules.policy_module import PolicyModule
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.policy_kinds import LoRAPolicy, MergedPolicy
from lightning_modules.ppo.reward_terms import ClassifierReward
from lightning_modules.sharding import find_blocks
from planning.shapes import build_classifier, build_seq2seq, find_blueprint


def build_module(module: BaseModule) -> Any:
    """Copy a module, as it is built from its settings, and give the copy its model.

    Raises:
        ValueError: If the config of its backbone cannot be had.
    """
    trial: Any = copy.deepcopy(module)
    if isinstance(trial, PolicyModule) and isinstance(trial.policy, MergedPolicy):
        # What is merged takes no room; and PEFT merges nothing that has no content.
        trial.policy, trial.adapter = fresh_lora(trial.policy), None
    blueprint = find_blueprint(trial.backbone_name, trial.kind)
    with torch.device("meta"), warnings.catch_warnings():
        # A trained adapter is read, and nothing keeps its content.
        warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter")
        if trial.kind == "classifier":
            backbone = build_classifier(blueprint, labels=len(getattr(trial, "labels", "1")))
        else:
            backbone = build_seq2seq(blueprint)
        if trial.dropout is not None:
            set_dropout(backbone, trial.dropout)
        trial.assemble(backbone)
    return trial


def fresh_lora(policy: LoRAPolicy) -> LoRAPolicy:
    """Give a policy of the same shape that starts from nothing."""
    fresh = LoRAPolicy()
    fresh.lora = policy.lora
    return fresh


def build_rewards(module: BaseModule) -> list[nn.Module]:
    """Make the frozen classifiers that PPO's rewards ask."""
    terms = module.terms.values() if isinstance(module, PPOPolicy) else ()
    return [build_judge(term.model) for term in terms if isinstance(term, ClassifierReward)]


def build_judge(name: str) -> nn.Module:
    """Make a frozen classifier."""
    with torch.device("meta"):
        judge = build_classifier(find_blueprint(name, "classifier"))
    return judge.eval().requires_grad_(False)


def count_units(model: nn.Module) -> tuple[int, int, int, int]:
    """Count the bytes of what a sharded strategy gathers at a time.

    Returns:
        Of the root, of the largest block, and of the trained weights in each.
    """
    blocks = find_blocks(model)
    in_blocks = {id(weight) for block in blocks for weight in block.parameters()}
    root = [weight for weight in model.parameters() if id(weight) not in in_blocks]
    largest = max((list(block.parameters()) for block in blocks), key=count_bytes, default=[])
    trained = ([each for each in part if each.requires_grad] for part in (root, largest))
    counts = [count_bytes(part) for part in (root, largest, *trained)]
    return counts[0], counts[1], counts[2], counts[3]


def count_bytes(weights: Iterable[nn.Parameter]) -> int:
    """Count the bytes of weights."""
    return sum(weight.numel() * weight.element_size() for weight in weights)
