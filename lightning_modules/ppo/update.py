"""Split a batch of rollouts into minibatches and micro-batches, and compute their losses."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.backbones import Backbone
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.kl import k2
from lightning_modules.ppo.losses import policy_loss, token_weights, value_loss
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.value_head import ValueHead

MAX_RATIO = 10.0
"""A minibatch whose mean ratio exceeds this takes no step (N+ details; TRL's ratio_threshold)."""


class Experience(NamedTuple):
    """Inputs of an update.

    rollout: B rollouts. advantages: whitened if the estimator says so. returns: targets of the
    value head; None without one. beta: weight of the KL in the loss; 0 if it is in the reward.
    """

    rollout: Rollout
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    beta: float

    def rows(self, index: Tensor) -> "Experience":
        """Select rows."""
        rollout = self.rollout.rows(index)
        width = rollout.mask.shape[1]
        returns = None if self.returns is None else self.returns[index, :width]
        return Experience(rollout, self.advantages[index, :width], returns, self.beta)


class Sums(NamedTuple):
    """Sums over real tokens, without gradient.

    loss: the clipped objective. ratio: pi / pi_old. clipped: tokens whose clipped branch was taken.
    approx_kl: k2 between old and new policy. value_loss. kl_loss: k2 between policy and reference,
    where it is in the loss. tokens. weight: what the three losses are divided by, the others by
    tokens.
    """

    loss: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    clipped: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    value_loss: Float[Tensor, ""]
    kl_loss: Float[Tensor, ""]
    tokens: Float[Tensor, ""]
    weight: Float[Tensor, ""]


class Cut(NamedTuple):
    """Number of minibatches in an epoch, and of micro-batches in a minibatch."""

    minibatches: int
    microbatches: int


def plan_cut(most: int, least: int, minibatch_size: int, microbatch_size: int | None) -> Cut:
    """Choose numbers of minibatches and micro-batches that suit every rank.

    They must be equal on all ranks, because ranks communicate in every backward pass and step.

    Args:
        most: Largest number of rollouts on a rank.
        least: Smallest number of rollouts on a rank; no part may be empty there.
        minibatch_size: Rollouts in one optimizer step, at most.
        microbatch_size: Rollouts in one forward and backward pass, at most; None is no limit.
    """
    minibatches = min(-(-most // minibatch_size), least)
    if microbatch_size is None:
        return Cut(minibatches, 1)
    largest, smallest = -(-most // minibatches), least // minibatches
    return Cut(minibatches, min(-(-largest // microbatch_size), smallest))


def minibatches(
    owner: Int[Tensor, " B"], cut: Cut, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the minibatches of all epochs, each a tuple of micro-batches of row indices.

    Prompts are shuffled and the rollouts of a prompt stay adjacent, so that most passes encode a
    prompt once for all of its rollouts.

    Args:
        owner: Index of the prompt of each rollout.
        cut: Numbers of parts.
        epochs: Number of epochs.
        generator: Source of the shuffles, on the CPU.
    """
    for _ in range(epochs):
        place = torch.randperm(int(owner.max()) + 1, generator=generator).to(owner.device)
        rows = place[owner].argsort(stable=True)
        for minibatch in rows.tensor_split(cut.minibatches):
            yield minibatch.tensor_split(cut.microbatches)


def minibatch_loss(
    backbone: Backbone, value_head: ValueHead | None, part: Experience, config: PPOConfig
) -> tuple[Float[Tensor, ""], Sums, Float[Tensor, "B T"]]:
    """Score some rollouts under the current policy, and sum the losses over their tokens.

    Args:
        backbone: The policy.
        value_head: The value head, or None.
        part: The rollouts.
        config: Settings.

    Returns:
        The sum of all losses with gradient, to be divided by the minibatch's weight over all ranks;
        the sums by name; and log pi(y_t) without gradient.
    """
    rollout, mask = part.rollout, part.rollout.mask
    context = backbone.read(rollout.prompts) if rollout.context is None else rollout.context
    new = backbone.score(
        context.rows(rollout.owner), rollout.responses, mask, config.temperature, value_head
    )
    weights, total = token_weights(mask, config.normalizer, config.max_new_tokens)
    policy = policy_loss(
        new.logprobs, rollout.logprobs, part.advantages, mask, config.clip, config.clip_high,
        config.dual_clip, config.objective, weights,
    )  # fmt: skip
    loss = policy.loss
    value = kl = torch.zeros_like(loss)
    if part.returns is not None:
        value = value_loss(new.values, rollout.values, part.returns, weights, config.value_clip)
        loss = loss + config.value_weight * value
    if part.beta:
        kl = (k2(new.logprobs, rollout.ref_logprobs) * weights).sum()
        loss = loss + part.beta * kl
    sums = [each.detach().float() for each in (*policy, value, kl, mask.sum(), total)]
    return loss, Sums(*sums), new.logprobs.detach()
