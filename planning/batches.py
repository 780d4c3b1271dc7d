"""Batches of the greatest lengths, without data, as a module's training step gets them."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.rollout import Encoded, Prompts, Rollout
from lightning_modules.ppo.update import Experience
from lightning_modules.reward_model import RewardModel
from planning.parts import Lengths

COMPLETIONS = 3
"""Completions a ranking, for the plan of a reward model: how many there are only the data say."""


def make_batch(module: Any, rows: int, lengths: Lengths) -> Any:
    """Make a batch as the module's datamodule does."""
    if isinstance(module, RewardModel):
        count = rows * COMPLETIONS
        pairs = torch.zeros(count, 2, dtype=torch.long)
        prompts = make_prompts(count, lengths.source)
        return {**prompts._asdict(), "pairs": pairs, "weights": torch.ones(count), "ids": [""]}
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
    numbers = torch.ones(tokens)
    rollout = Rollout(
        make_prompts(prompts, lengths.source), owner, _ones(*tokens), _ones(*tokens).bool(),
        torch.ones(rows).bool(), numbers, numbers, numbers, numbers,
        None if encoded is None else encoded.rows(torch.arange(prompts)),
    )  # fmt: skip
    returns = None if module.value_head is None else numbers
    return Experience(rollout, numbers, returns, settings.kl_coef if settings.kl_in_loss else 0.0)


def find_chunk(module: PPOPolicy, lengths: Lengths) -> int:
    """Give the most rollouts that PPO takes through the model at once."""
    settings = module.ppo
    chunk = settings.microbatch_size or settings.minibatch_size
    return min(chunk, lengths.batch_size * settings.samples)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)
