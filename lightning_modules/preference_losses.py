"""Losses of pairs of which one is preferred: pure functions of tensors."""

from torch import Tensor
from torch.nn import functional as F


def pairwise_loss(
    rewards: Tensor,
    pairs: Tensor,
    weights: Tensor,
    distances: Tensor | None = None,
    margin: float = 0.0,
) -> Tensor:
    """Sum the weighted losses -log sigmoid(r_j - r_k - margin * distance) of pairs: a scalar.

    Ouyang et al. 2022, arXiv 2203.02155, equation 1; the margin is that of Touvron et al. 2023,
    "Llama 2", arXiv 2307.09288, equation 2, in proportion to the distance of the two ranks.

    Args:
        rewards: Rewards of all completions, [N].
        pairs: Indices j (preferred) and k of each pair, [P, 2].
        weights: Weights of the pairs, [P]; those of one ranking sum to 1.
        distances: Difference of the two ranks, [P]; needed only with a margin.
        margin: Lead per rank at which the loss is log 2.
    """
    lead = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
    if margin and distances is not None:
        lead = lead - margin * distances
    return -(weights * F.logsigmoid(lead)).sum()


def dpo_loss(
    ratios: Tensor, pairs: Tensor, weights: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Sum the weighted losses of direct preference optimization: a scalar.

    Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, equation 7: with
    h = beta * (ratio_j - ratio_k), the loss of a pair is -log sigmoid(h). If the labels are wrong
    with probability e, it is -(1 - e) log sigmoid(h) - e log sigmoid(-h) (the same authors'
    "conservative" DPO, Mitchell 2023), with its minimum at a finite h, where sigmoid(h) = 1 - e.

    Args:
        ratios: log pi(y | x) - log pi_ref(y | x) of each completion, summed over its tokens, [N].
        pairs: Indices j (preferred) and k of each pair, [P, 2].
        weights: Weights of the pairs, [P]; those of one dialogue sum to 1.
        beta: Strength of the constraint to the reference.
        label_smoothing: The probability e, in [0, 0.5).
    """
    lead = beta * (ratios[pairs[:, 0]] - ratios[pairs[:, 1]])
    losses = (1 - label_smoothing) * F.logsigmoid(lead) + label_smoothing * F.logsigmoid(-lead)
    return -(weights * losses).sum()
