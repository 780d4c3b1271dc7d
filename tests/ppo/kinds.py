"""Policies of every kind on tiny models."""

from typing import Any

import torch

from lightning_modules import PPOPolicy
from lightning_modules.policies.kinds import (
    FullPolicy,
    LoRAPolicy,
    PolicyKind,
    SoftPromptPolicy,
)
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.summarization import Decoding

DECODING = Decoding(max_new_tokens=10)
PPO = PPOConfig(max_new_tokens=10, minibatch_size=4, epochs=3)
DECODER = r".*decoder.*\.(q|v)"
KINDS: dict[str, tuple[PolicyKind, str | None]] = {
    "fresh LoRA": (LoRAPolicy(r=4, alpha=8), None),
    "trained LoRA": (LoRAPolicy(), "lora"),
    "trained LoRA in the decoder": (LoRAPolicy(train_encoder=False), "lora"),
    "decoder LoRA": (LoRAPolicy(r=4, alpha=8, target_modules=DECODER), None),
    "fresh soft prompt": (SoftPromptPolicy(virtual_tokens=5), None),
    "trained soft prompt": (SoftPromptPolicy(), "soft"),
    "full": (FullPolicy(), None),
    "full decoder": (FullPolicy(train_encoder=False), None),
}
"""The policy, and which trained adapter it starts from."""


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def make_policy(t5: str, roberta: str, **settings: Any) -> PPOPolicy:
    defaults: dict[str, Any] = {
        "policy": LoRAPolicy(r=4, alpha=8), "ppo": PPO, "decoding": DECODING,
        "optimizer": adamw(0.01),
    }  # fmt: skip
    if "adapter" in settings:
        defaults["policy"] = LoRAPolicy()
    return PPOPolicy(backbone=t5, reward_model=roberta, **(defaults | settings))
