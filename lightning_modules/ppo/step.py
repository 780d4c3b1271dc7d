"""PPOStep: what one training step of PPO hands to callbacks."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_modules.ppo.rollout import Rollout


@dataclass(frozen=True)
class PPOStep:
    """One batch of B rollouts, and what PPO made of it.

    Args:
        batch: Number of batches of rollouts before this one.
        rollout: The rollouts.
        texts: The B summaries.
        terms: Scores of each reward term by its name, before its weight.
        scores: Weighted sum of the terms.
        shaped: The scores after normalization, clipping and penalties.
        rewards: Reward of each token.
        advantages: As the update used them.
        returns: Targets of the value head; None without one.
        new_logprobs: log pi(y_t) as the last epoch found it, just before its step.
        beta: Weight of the KL.
        metrics: Everything that was logged.
    """

    batch: int
    rollout: Rollout
    texts: list[str]
    terms: dict[str, Float[Tensor, " B"]]
    scores: Float[Tensor, " B"]
    shaped: Float[Tensor, " B"]
    rewards: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    new_logprobs: Float[Tensor, "B T"]
    beta: float
    metrics: dict[str, Any]
