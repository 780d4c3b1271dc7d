"""The clipped losses of PPO and its relatives, as weighted sums over real tokens.

They are sums because the caller divides by the weights over all ranks, so that the result does not
depend on how a batch is split.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this size before exp, which overflows fp32 at 88."""


Normalizer = Literal["tokens", "sequences", "max_tokens"]


class PolicyLoss(NamedTuple):
    """Sums over the real tokens of a minibatch, scalars.

    loss: the weighted objective, to be minimized. ratio: pi / pi_old. clipped: tokens whose clipped
    branch was taken. approx_kl: (log-ratio)^2 / 2, Schulman's k2 between old and new policy.
    """

    loss: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    clipped: Int[Tensor, ""]
    approx_kl: Float[Tensor, ""]


def token_weights(
    mask: Bool[Tensor, "B T"], normalizer: Normalizer, max_new_tokens: int
) -> tuple[Float[Tensor, "B T"], Float[Tensor, ""]]:
    """Return the weight of each token in the loss, and what the weighted sum is divided by.

    Args:
        mask: True at y1..EOS.
        normalizer: ``tokens`` is a mean over all tokens (DAPO, Yu et al. 2025, arXiv 2503.14476,
            section 3.3); ``sequences`` a mean over the responses' own means, in which the tokens of
            a long response count less (GRPO); ``max_tokens`` a sum divided by the number of
            responses times the longest possible one, which no length influences (Dr. GRPO, Liu et
            al. 2025, arXiv 2503.20783).
        max_new_tokens: Longest possible response.
    """
    weights = mask.float()
    if normalizer == "sequences":
        weights = weights / mask.sum(dim=1, keepdim=True).clamp_min(1)
    if normalizer == "max_tokens":
        return weights, weights.new_tensor(len(mask) * max_new_tokens)
    return weights, weights.sum()


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    objective: Literal["ppo", "gspo", "cispo"] = "ppo",
    weights: Float[Tensor, "B T"] | None = None,
) -> PolicyLoss:
    """Sum the clipped surrogate loss max(-A rho, -A clip(rho, 1 - clip, 1 + clip)).

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7.

    Args:
        logprobs: log pi(y_t) now, with gradient.
        old_logprobs: log pi(y_t) during the rollout.
        advantages: A_t.
        mask: True at y1..EOS.
        clip: The ratio is clipped to [1 - clip, 1 + clip].
        clip_high: Upper bound in place of ``clip``, "clip-higher" (DAPO, Yu et al. 2025, arXiv
            2503.14476, section 3.1).
        dual_clip: Bounds the loss of a negative advantage by -A dual_clip (Ye et al. 2020, arXiv
            1912.09729).
        objective: ``ppo``. ``gspo`` has one ratio for a response, the geometric mean of its tokens'
            (Zheng et al. 2025, arXiv 2507.18071, equations 5 and 7). ``cispo`` clips the weight
            of REINFORCE in place of the objective, so that every token keeps a gradient:
            -sg(clip(rho)) A log pi (MiniMax 2025, arXiv 2506.13585, equations 4 and 5).
        weights: Weight of each token, 0 outside the mask; None weighs all the same.
    """
    weights = mask.to(logprobs.dtype) if weights is None else weights
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    used = log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if objective == "gspo":
        used = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        used = used.expand_as(log_ratio).masked_fill(~mask, 0.0)
    ratio = used.exp()
    near = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    if objective == "cispo":
        losses = -near.detach() * advantages * logprobs.masked_fill(~mask, 0.0)
        is_clipped = near != ratio
    else:
        unclipped, clipped = -advantages * ratio, -advantages * near
        losses, is_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
        if dual_clip is not None:
            bound = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
            losses, is_clipped = torch.minimum(losses, bound), is_clipped | (losses > bound)
    return PolicyLoss(
        loss=(losses * weights).sum(),
        ratio=(ratio.detach() * mask).sum(),
        clipped=(is_clipped & mask).sum(),
        approx_kl=(0.5 * log_ratio.detach().square() * mask).sum(),
    )


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Sum 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2) over the real tokens.

    The value clipping of the PPO paper's reference code; see Huang et al. 2024, "The N+
    Implementation Details of RLHF with PPO".

    Args:
        values: V_t now, with gradient.
        old_values: V_t during the rollout.
        returns: R_t.
        weights: Weight of each token, 0 outside the mask; or the mask.
        clip: Largest change of a value before its gradient is cut off.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * (worse * weights).sum()


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
