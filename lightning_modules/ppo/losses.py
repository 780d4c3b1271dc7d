"""The clipped losses of PPO, as sums over real tokens.

They are sums because the caller divides by the number of real tokens over all ranks, so that the
result does not depend on how a batch is split.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this size before exp, which overflows fp32 at 88."""


class PolicyLoss(NamedTuple):
    """Sums over the real tokens of a minibatch, scalars.

    loss: the clipped objective, to be minimised. ratio: pi / pi_old. clipped: tokens whose clipped
    branch was taken. approx_kl: (log-ratio)^2 / 2, Schulman's k2 between old and new policy.
    """

    loss: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    clipped: Int[Tensor, ""]
    approx_kl: Float[Tensor, ""]


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> PolicyLoss:
    """Sum the clipped surrogate loss max(-A rho, -A clip(rho, 1 - clip, 1 + clip)).

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7.

    Args:
        logprobs: log pi(y_t) now, with gradient.
        old_logprobs: log pi(y_t) during the rollout.
        advantages: A_t.
        mask: True at y1..EOS.
        clip: The ratio is clipped to [1 - clip, 1 + clip].
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return PolicyLoss(
        loss=(torch.maximum(unclipped, clipped) * mask).sum(),
        ratio=(ratio.detach() * mask).sum(),
        clipped=((clipped > unclipped) & mask).sum(),
        approx_kl=(0.5 * log_ratio.detach().square() * mask).sum(),
    )


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Sum 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2) over the real tokens.

    The value clipping of the PPO paper's reference code; see Huang et al. 2024, "The N+
    Implementation Details of RLHF with PPO".

    Args:
        values: V_t now, with gradient.
        old_values: V_t during the rollout.
        returns: R_t.
        mask: True at y1..EOS.
        clip: Largest change of a value before its gradient is cut off.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * (worse * mask).sum()


def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
) -> Float[Tensor, ""]:
    """Compute the fraction of the returns' variance that the values explain; at most 1.

    Args:
        values: V_t.
        returns: R_t.
        mask: True at real tokens.
        sum_over_ranks: Sums a tensor over the ranks; the variances are over all of them.
    """
    both = torch.stack([returns[mask], (returns - values)[mask]]).double()
    count = sum_over_ranks(mask.sum())
    mean = sum_over_ranks(both.sum(dim=1)) / count
    of_returns, of_residual = sum_over_ranks((both - mean[:, None]).square().sum(dim=1)) / count
    return (1 - of_residual / of_returns.clamp_min(1e-8)).float()
