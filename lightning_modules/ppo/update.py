"""One batch of rollouts becomes optimizer steps: minibatches, micro-batches and their losses."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.backbones import Backbone
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.kl import k2
from lightning_modules.ppo.losses import policy_loss, value_loss
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.value_head import ValueHead


class Experience(NamedTuple):
    """What an update learns from.

    rollout: B rollouts. advantages [B, T], whitened if they are to be. returns [B, T], for the
    value head; None without one. beta: weight of the KL in the loss; 0 where it is in the reward.
    """

    rollout: Rollout
    advantages: Tensor
    returns: Tensor | None
    beta: float

    def rows(self, index: Tensor) -> "Experience":
        """Take some of the rows."""
        rollout = self.rollout.rows(index)
        width = rollout.mask.shape[1]
        returns = None if self.returns is None else self.returns[index, :width]
        return Experience(rollout, self.advantages[index, :width], returns, self.beta)


class Sums(NamedTuple):
    """Sums over real tokens, scalars without gradient, in the order in which they are logged.

    loss: the clipped objective. ratio: pi / pi_old. clipped: tokens whose clipped branch was taken.
    approx_kl: k2 between old and new policy. value_loss. kl_loss: k2 between policy and reference,
    where it is in the loss. tokens.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor
    value_loss: Tensor
    kl_loss: Tensor
    tokens: Tensor


class Update(NamedTuple):
    """What came out of an update.

    metrics: means over tokens, to be logged. logprobs: log pi(y_t) as the last epoch found it, just
    before its step on that minibatch, [B, T]; exp of its difference to the rollout's is the ratio.
    """

    metrics: dict[str, Any]
    logprobs: Tensor


class Cut(NamedTuple):
    """In how many minibatches an epoch is cut, and each of these in how many micro-batches."""

    minibatches: int
    microbatches: int


def plan_cut(most: int, least: int, minibatch_size: int, microbatch_size: int | None) -> Cut:
    """Cut the same way on every rank, for each step and each backward pass is one of all ranks.

    Args:
        most: Rollouts of the rank that has most.
        least: Rollouts of the rank that has fewest; no part is empty on it.
        minibatch_size: Rollouts in one optimizer step, at most.
        microbatch_size: Rollouts in one pass, at most; None is no limit.
    """
    minibatches = min(-(-most // minibatch_size), least)
    if microbatch_size is None:
        return Cut(minibatches, 1)
    largest, smallest = -(-most // minibatches), least // minibatches
    return Cut(minibatches, min(-(-largest // microbatch_size), smallest))


def minibatches(
    owner: Tensor, cut: Cut, epochs: int, generator: torch.Generator
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Give for each epoch its minibatches, each a tuple of micro-batches of row numbers.

    Prompts are shuffled, and the rollouts to one prompt stay side by side: so most passes encode a
    prompt once for all of its rollouts.

    Args:
        owner: Which prompt each rollout answers, [B].
        cut: Numbers of parts.
        epochs: Number of epochs.
        generator: Source of the shuffles, on the CPU.
    """
    for _ in range(epochs):
        place = torch.randperm(int(owner.max()) + 1, generator=generator).to(owner.device)
        rows = place[owner].argsort(stable=True)
        yield [part.tensor_split(cut.microbatches) for part in rows.tensor_split(cut.minibatches)]


def minibatch_loss(
    backbone: Backbone, value_head: ValueHead | None, part: Experience, config: PPOConfig
) -> tuple[Float[Tensor, ""], Sums, Float[Tensor, "B T"]]:
    """Score some rollouts under the current policy, and sum the losses over their tokens.

    Args:
        backbone: The policy.
        value_head: If there is one.
        part: The rollouts.
        config: Settings.

    Returns:
        The sum of all losses, a scalar with gradient, to be divided by the tokens of the whole
        minibatch over all ranks; the single sums; and log pi(y_t) without gradient, [B, T].
    """
    rollout, mask = part.rollout, part.rollout.mask
    context = backbone.read(rollout.prompts) if rollout.context is None else rollout.context
    new = backbone.score(
        context.rows(rollout.owner), rollout.responses, mask, config.temperature, value_head
    )
    policy = policy_loss(new.logprobs, rollout.logprobs, part.advantages, mask, config.clip)
    loss = policy.loss
    value = kl = torch.zeros_like(loss)
    if part.returns is not None:
        value = value_loss(new.values, rollout.values, part.returns, mask, config.value_clip)
        loss = loss + config.value_weight * value
    if part.beta:
        kl = (k2(new.logprobs, rollout.ref_logprobs) * mask).sum()
        loss = loss + part.beta * kl
    sums = [each.detach().float() for each in (*policy, value, kl, mask.sum())]
    return loss, Sums(*sums), new.logprobs.detach()
