"""Advantage estimators: GAE, RLOO, GRPO and REINFORCE++."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Credit(NamedTuple):
    """Advantages, 0 outside the mask, and the value head's returns; None without a value head."""

    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None


class AdvantageEstimator(ABC):
    """Computes advantages from the rewards of B = P * k rollouts, the k of a prompt adjacent.

    Args:
        whiten: Scale the advantages of a batch to mean 0 and variance 1 over its real tokens.
    """

    least_samples: ClassVar[int] = 1
    """Fewest rollouts per prompt that the estimator needs."""

    uses_values: ClassVar[bool] = False
    """Whether the estimator needs a value head."""

    def __init__(self, whiten: bool) -> None:
        self.whiten = whiten

    @abstractmethod
    def __call__(
        self,
        rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        samples: int,
    ) -> Credit:
        """Estimate advantages and returns.

        Args:
            rewards: r_t, 0 outside the mask.
            values: V_t of the value head during the rollout.
            mask: True at y1..EOS.
            samples: k, rollouts per prompt.
        """


class GAE(AdvantageEstimator):
    """Generalized advantage estimation with a value head, as in PPO; see :func:`gae`.

    Args:
        gamma: Discount.
        lam: Lambda: 0 is one-step temporal difference, 1 is Monte Carlo.
        whiten: Scale the advantages of a batch to mean 0 and variance 1.

    Raises:
        ValueError: If gamma or lam is not in [0, 1].
    """

    uses_values = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True) -> None:
        super().__init__(whiten)
        for name, value in (("gamma", gamma), ("lam", lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"GAE: {name} must be in [0, 1], got {value}")
        self.gamma = gamma
        self.lam = lam

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Estimate token by token; ``samples`` has no effect."""
        return Credit(*gae(rewards, values, mask, self.gamma, self.lam))


class ReinforcePlusPlus(AdvantageEstimator):
    """Discounted rewards to go, normalized over the batch, without a value head or groups.

    Hu 2025, "REINFORCE++", arXiv 2501.03262: A_t = sum_{s >= t} gamma^(s - t) r_s, with the KL in
    the rewards.

    Args:
        gamma: Discount.
        normalize: Scale the advantages of a batch to mean 0 and variance 1.

    Raises:
        ValueError: If gamma is not in [0, 1].
    """

    def __init__(self, gamma: float = 1.0, normalize: bool = True) -> None:
        super().__init__(normalize)
        if not 0 <= gamma <= 1:
            raise ValueError(f"ReinforcePlusPlus: gamma must be in [0, 1], got {gamma}")
        self.gamma = gamma

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Sum the rewards from each token on: GAE with lambda 1 and values of 0."""
        advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, self.gamma, 1.0)
        return Credit(advantages * mask, None)


class GroupEstimator(AdvantageEstimator):
    """Compares the rewards of a prompt's rollouts; all tokens of a response share one advantage."""

    least_samples = 2

    @abstractmethod
    def compare(self, totals: Float[Tensor, " B"], samples: int) -> Float[Tensor, " B"]:
        """Compute an advantage from the total reward of each response."""

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Estimate per response; ``values`` have no effect."""
        return Credit(self.compare(rewards.sum(dim=1), samples)[:, None] * mask, None)


class RLOO(GroupEstimator):
    """REINFORCE leave-one-out, without a value head; see :func:`rloo`.

    Args:
        normalize: Scale the advantages of a batch to mean 0 and variance 1. It has another name
            than GAE's ``whiten``, because a config that changes the class keeps settings by name.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__(normalize)

    def compare(self, totals: Tensor, samples: int) -> Tensor:
        """Compare each reward with the mean of the others."""
        return rloo(totals, samples)


class GRPO(GroupEstimator):
    """Group-relative advantages, without a value head; see :func:`grpo`.

    Args:
        scale: Divide by the standard deviation of the group. Without it, groups of similar rewards
            count less (Liu et al. 2025, "Understanding R1-Zero-Like Training").
        normalize: As in :class:`RLOO`.
    """

    def __init__(self, scale: bool = True, normalize: bool = False) -> None:
        super().__init__(normalize)
        self.scale = scale

    def compare(self, totals: Tensor, samples: int) -> Tensor:
        """Standardize each reward within its group."""
        return grpo(totals, samples, self.scale)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Estimate advantages and returns (Schulman et al. 2016, "GAE", equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; after the last real
    token both V and A are 0.

    Args:
        rewards: r_t.
        values: V_t of the value head during the rollout.
        mask: True at y1..EOS.
        gamma: Discount.
        lam: Lambda: 0 is one-step temporal difference, 1 is Monte Carlo.

    Returns:
        Advantages and returns A_t + V_t, 0 outside the mask, before any whitening.
    """
    real = mask.to(rewards.dtype)
    values = values * real
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards + gamma * next_values - values) * real
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def rloo(totals: Float[Tensor, " B"], samples: int) -> Float[Tensor, " B"]:
    """Subtract from each reward the mean of the prompt's other rollouts, R_i - mean_{j != i} R_j.

    Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization", equation 8. The
    response is one action, so all its tokens have the same advantage.

    Args:
        totals: R, the reward of each rollout with its KL penalty, summed over tokens, B = P * k.
        samples: k, at least 2.
    """
    groups = _from_first(totals, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def grpo(totals: Float[Tensor, " B"], samples: int, scale: bool = True) -> Float[Tensor, " B"]:
    """Standardize each reward within its group, the k rollouts of a prompt: (R_i - mean) / std.

    Shao et al. 2024, "DeepSeekMath", section 4.1.2, outcome supervision. The standard deviation is
    the unbiased one, as in common implementations, plus 1e-4 for groups of equal rewards.

    Args:
        totals: R of each rollout, B = P * k.
        samples: k, at least 2.
        scale: Divide by the standard deviation.
    """
    groups = _from_first(totals, samples)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + 1e-4)
    return advantages.flatten()


def _from_first(totals: Float[Tensor, " B"], samples: int) -> Float[Tensor, "P k"]:
    """Subtract from each group its first reward, which changes no comparison within the group.

    Equal rewards become exactly 0. Otherwise their mean could differ by rounding (three times
    1000.1), which the division by a tiny standard deviation would turn into a large advantage.
    """
    groups = totals.view(-1, samples)
    return groups - groups[:, :1]


def whiten(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
) -> Float[Tensor, "B T"]:
    """Scale to mean 0 and variance 1 over the real tokens: (x - mean) / sqrt(var + 1e-8).

    Args:
        values: One value per token.
        mask: True at real tokens.
        sum_over_ranks: Sums a tensor over the ranks; mean and biased variance are over all of them.

    Returns:
        Whitened values, 0 outside the mask.
    """
    real = mask.to(values.dtype)
    count, total = sum_over_ranks(torch.stack([real.sum(), (values * real).sum()]))
    mean = total / count
    variance = sum_over_ranks(((values - mean).square() * real).sum()) / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * real
