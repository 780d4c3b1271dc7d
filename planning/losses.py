"""The losses that training steps take their gradients of, on the largest batches of a run."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.adapters import encoder_is_trained
from lightning_modules.ppo.losses import policy_loss, value_loss
from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.ppo.rollout import Encoded, Prompts, encode, score_tokens
from lightning_modules.reward_model import RewardModel, pairwise_loss
from lightning_modules.summarization import SummarizationModule
from planning.parts import Lengths

COMPLETIONS = 3
"""Completions a ranking, for the plan of a reward model: how many there are only the data say."""


def make_loss(module: Any, lengths: Lengths, updates: bool = True) -> Tensor:
    """Compute the loss that a training step of this module takes its gradient of.

    Args:
        module: With its model built.
        lengths: Of the batch.
        updates: For PPO, the loss of a minibatch's update; else the one that evaluation reports.

    Raises:
        ValueError: If the module is of no kind that is known here.
    """
    if isinstance(module, RewardModel):
        return _pairwise(module, lengths)
    if isinstance(module, PPOPolicy) and updates:
        return _ppo(module, lengths)
    if not isinstance(module, SummarizationModule):
        raise ValueError(f"the loss of {type(module).__name__} is not known to planning/losses.py")
    loss_sum, tokens = module.token_loss(make_batch(lengths))
    return loss_sum / tokens


def make_batch(lengths: Lengths) -> Any:
    """Make a batch as the collator does, of the greatest lengths."""
    prompts, labels = make_rollout(lengths.batch_size, lengths.source, lengths.target)
    return {**prompts._asdict(), "labels": labels, "ids": []}


def make_rollout(rows: int, source: int, target: int) -> tuple[Prompts, Tensor]:
    """Make prompts [rows, source] and responses [rows, target]."""
    ids = torch.ones(rows, source, dtype=torch.long)
    return Prompts(ids, torch.ones_like(ids)), torch.ones(rows, target, dtype=torch.long)


def _ppo(module: PPOPolicy, lengths: Lengths) -> Tensor:
    """The loss of one micro-batch, each prompt of which is encoded once."""
    settings = module.ppo
    rows = min(
        settings.microbatch_size or settings.minibatch_size, lengths.batch_size * settings.samples
    )
    prompts, _ = make_rollout(-(-rows // settings.samples), lengths.source, 1)
    responses = torch.ones(rows, settings.max_new_tokens, dtype=torch.long)
    mask = torch.ones_like(responses, dtype=torch.bool)
    with torch.set_grad_enabled(encoder_is_trained(module.model)):
        encoded = encode(module.model, prompts)
    encoded = Encoded(*(each.repeat_interleave(settings.samples, 0)[:rows] for each in encoded))
    new = score_tokens(
        module.model, encoded, responses, mask, settings.temperature, module.value_head
    )
    old = torch.zeros_like(new.logprobs)
    loss = policy_loss(new.logprobs, old, old, mask, settings.clip).loss
    if module.value_head is not None:
        loss = loss + settings.value_weight * value_loss(new.values, old, old, mask, 0.2)
    return loss / mask.sum()


def _pairwise(module: RewardModel, lengths: Lengths) -> Tensor:
    rows = lengths.batch_size * COMPLETIONS
    ids = torch.ones(rows, lengths.source, dtype=torch.long)
    pairs = torch.zeros(rows, 2, dtype=torch.long)
    batch: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return pairwise_loss(module.rewards(batch), pairs, torch.ones(len(pairs)))
