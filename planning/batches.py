"""Batches of the greatest lengths, without data, as a module's training step gets them."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.classifier import Classifier
from lightning_modules.dpo import DPO
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.token_scores import Encoded, Prompts
from lightning_modules.ppo.update import Experience
from lightning_modules.reward_model import RewardModel
from planning.parts import Lengths

COMPLETIONS = 3
"""Completions a ranking, for a reward model and DPO: how many there are only the data say."""


def make_batch(module: Any, rows: int, lengths: Lengths) -> Any:
    """Make a batch as the module's datamodule does."""
    count = rows * COMPLETIONS
    pairs = {
        "pairs": torch.zeros(count, 2, dtype=torch.long),
        "weights": torch.ones(count),
        "distances": torch.ones(count),
        "ids": [""],
    }
    if isinstance(module, RewardModel):
        return {"inputs": make_prompts(count, lengths.source)._asdict(), **pairs}
    if isinstance(module, DPO):
        tokens = _ones(count, lengths.target)
        return {
            **make_prompts(rows, lengths.source)._asdict(), **pairs, "responses": tokens,
            "mask": tokens.bool(), "owner": torch.arange(count) // COMPLETIONS,
        }  # fmt: skip
    if isinstance(module, Classifier):
        labels = torch.zeros(rows, dtype=torch.long)
        return {
            "inputs": make_prompts(rows, lengths.source)._asdict(), "labels": labels, "ids": [""]
        }  # fmt: skip
    prompts = make_prompts(rows, lengths.source)
    return {**prompts._asdict(), "labels": _ones(rows, lengths.target), "ids": [""]}


def make_prompts(rows: int, source: int) -> Prompts:
    """Make prompts [rows, source]."""
    return Prompts(_ones(rows, source), _ones(rows, source))


def make_experience(module: PPOPolicy, lengths: Lengths, encoded: Encoded | None) -> Experience:
    """Make what one pass of an update learns from: the most rollouts that are in one.

    Args:
        module: With its model built.
        lengths: Of the batch of prompts.
        encoded: The encoder's output for that batch, if the epochs share it.
    """
    settings = module.ppo
    rows = find_chunk(module, lengths)
    owner = torch.arange(rows) // settings.samples
    prompts = -(-rows // settings.samples)
    tokens = rows, settings.max_new_tokens
    rollout = Rollout(
        make_prompts(prompts, lengths.source), owner, _ones(*tokens), _ones(*tokens).bool(),
        torch.ones(rows).bool(), *(torch.ones(tokens),) * 4,
        None if encoded is None else encoded.rows(torch.arange(prompts)),
    )  # fmt: skip
    returns = torch.ones(tokens) if module.value_head is not None else None
    beta = settings.kl_coef if settings.kl_in_loss else 0.0
    return Experience(rollout, torch.ones(tokens), returns, beta)


def find_chunk(module: PPOPolicy, lengths: Lengths) -> int:
    """Give the most rollouts that PPO takes through the model at once."""
    settings = module.ppo
    chunk = settings.microbatch_size or settings.minibatch_size
    return min(chunk, lengths.batch_size * settings.samples)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)
