"""How much better each token was than the value head expected."""

from collections.abc import Callable

import torch
from torch import Tensor


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
