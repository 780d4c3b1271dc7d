"""How much better each token was than could be expected: GAE, RLOO and GRPO."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Credit(NamedTuple):
    """advantages [B, T], 0 outside the mask; returns [B, T] for a value head, or None without."""

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(ABC):
    """From the rewards of B = P * k rollouts, k to a prompt and side by side, to advantages.

    Args:
        whiten: Scale the advantages of a batch to mean 0 and variance 1 over its real tokens.
    """

    least_samples: ClassVar[int] = 1
    """Fewest rollouts to a prompt that it can work with."""

    uses_values: ClassVar[bool] = False
    """Whether it needs a value head."""

    def __init__(self, whiten: bool) -> None:
        self.whiten = whiten

    @abstractmethod
    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Estimate.

        Args:
            rewards: r_t, [B, T], 0 outside the mask.
            values: V_t of the value head when the rollout was made, [B, T].
            mask: True at y1..EOS, [B, T].
            samples: k, rollouts to a prompt.
        """


class GAE(AdvantageEstimator):
    """Generalised advantage estimation with a value head: the estimate of PPO; see :func:`gae`.

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
        """Estimate; ``samples`` plays no part."""
        return Credit(*gae(rewards, values, mask, self.gamma, self.lam))


class RLOO(AdvantageEstimator):
    """REINFORCE leave-one-out, without a value head; see :func:`rloo`.

    Args:
        whiten: Scale the advantages of a batch to mean 0 and variance 1.
    """

    least_samples = 2

    def __init__(self, whiten: bool = False) -> None:
        super().__init__(whiten)

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Estimate; ``values`` play no part."""
        return Credit(rloo(rewards.sum(dim=1), samples)[:, None] * mask, None)


class GRPO(AdvantageEstimator):
    """Group-relative advantages, without a value head; see :func:`grpo`.

    Args:
        scale: Divide by the standard deviation of the group. Without it groups whose rollouts are
            nearly alike count less (Liu et al. 2025, "Understanding R1-Zero-Like Training").
        whiten: Scale the advantages of a batch to mean 0 and variance 1.
    """

    least_samples = 2

    def __init__(self, scale: bool = True, whiten: bool = False) -> None:
        super().__init__(whiten)
        self.scale = scale

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, samples: int) -> Credit:
        """Estimate; ``values`` play no part."""
        return Credit(grpo(rewards.sum(dim=1), samples, self.scale)[:, None] * mask, None)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Estimate advantages and returns (Schulman et al. 2016, "GAE", equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; after the last real
    token both V and A are 0.

    Args:
        rewards: r_t, [B, T].
        values: V_t of the value head when the rollout was made, [B, T].
        mask: True at y1..EOS, [B, T].
        gamma: Discount.
        lam: Lambda: 0 is one-step temporal difference, 1 is Monte Carlo.

    Returns:
        Advantages and returns A_t + V_t, both [B, T] and 0 outside the mask. The returns are those
        of the unwhitened advantages.
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


def rloo(totals: Tensor, samples: int) -> Tensor:
    """Compare each rollout with the mean of the others to its prompt: R_i - mean of R_j, j != i.

    Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization", equation 8. The
    whole response is one action, so every token of it has the same advantage.

    Args:
        totals: R, the reward of each rollout with its KL penalty, summed over tokens, [P * k].
        samples: k, at least 2.
    """
    groups = _from_first(totals, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def grpo(totals: Tensor, samples: int, scale: bool = True) -> Tensor:
    """Compare each rollout with its group: (R_i - mean) / std, over the k rollouts to its prompt.

    Shao et al. 2024, "DeepSeekMath", section 4.1.2, outcome supervision. The standard deviation is
    the unbiased one, as in the implementations that followed it; 1e-4 is added, for a group whose
    rewards are all alike.

    Args:
        totals: R of each rollout, [P * k].
        samples: k, at least 2.
        scale: Divide by the standard deviation.
    """
    groups = _from_first(totals, samples)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + 1e-4)
    return advantages.flatten()


def _from_first(totals: Tensor, samples: int) -> Tensor:
    """Give each group's rewards less its first one, [P, k]; no comparison within it is changed.

    Rewards that are all alike are exactly 0 so. Otherwise the mean of three times 1000.1 is not
    1000.1, and dividing by next to nothing makes a large advantage of the rounding.
    """
    groups = totals.view(-1, samples)
    return groups - groups[:, :1]


def whiten(
    values: Tensor,
    mask: Tensor,
    keep_mean: bool = False,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensor:
    """Scale to variance 1 over the real tokens, and shift to mean 0 unless the mean is to stay.

    (x - mean) / sqrt(var + 1e-8), with the biased variance. Statistics are over all ranks when
    ``sum_over_ranks`` sums a tensor over them.

    Args:
        values: [B, T].
        mask: True at real tokens, [B, T].
        keep_mean: Add the mean back: for rewards, whose sign has a meaning.
        sum_over_ranks: Sums a tensor over the ranks.

    Returns:
        Whitened values [B, T], 0 outside the mask.
    """
    real = mask.to(values.dtype)
    count, total = sum_over_ranks(torch.stack([real.sum(), (values * real).sum()]))
    mean = total / count
    variance = sum_over_ranks(((values - mean).square() * real).sum()) / count
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if keep_mean:
        whitened = whitened + mean
    return whitened * real
