"""Losses of pairs of which one is preferred: pure functions of tensors.

The losses of policies are registered in LOSSES. A new one is a function of :class:`Pairs` that
returns a loss per pair; its keyword arguments are settings of ``PreferenceModule``, and their
defaults are the paper's.
"""

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple

import torch
from jaxtyping import Float
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


class Pairs(NamedTuple):
    """Log-probabilities of P pairs of completions, summed over their tokens, in nats.

    chosen and rejected are log pi(y | x) of the preferred completion and of the other, with
    gradient; ref_chosen and ref_rejected the same under the reference. kl is KTO's z_0, a scalar.
    """

    chosen: Float[Tensor, " P"]
    rejected: Float[Tensor, " P"]
    ref_chosen: Float[Tensor, " P"]
    ref_rejected: Float[Tensor, " P"]
    kl: Float[Tensor, ""] | float = 0.0

    @property
    def lead(self) -> Float[Tensor, " P"]:
        """How much more the policy raised the preferred completion than the other, in nats."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)


class PreferenceLoss(NamedTuple):
    """A loss, and what it needs.

    compute: Returns the loss of each pair, [P]. needs_reference: whether it reads the reference's
    log-probabilities. per_token: whether it takes means over tokens in place of sums. needs_kl:
    whether it reads ``kl``. sft_weight: default weight of the preferred completions' cross-entropy.
    """

    compute: Callable[..., Float[Tensor, " P"]]
    needs_reference: bool = True
    per_token: bool = False
    needs_kl: bool = False
    sft_weight: float = 0.0

    def defaults(self) -> dict[str, float]:
        """Return the loss's settings with their defaults."""
        parameters = list(signature(self.compute).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


def sigmoid(pairs: Pairs, beta: float = 0.1, label_smoothing: float = 0.0) -> Float[Tensor, " P"]:
    """Compute -log sigmoid of h = beta * lead, the loss of DPO.

    Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, equation 7. If labels
    are wrong with probability e, it is -(1 - e) log sigmoid(h) - e log sigmoid(-h), "conservative"
    DPO (Mitchell 2023), with its minimum at a finite h, where sigmoid(h) = 1 - e.
    """
    h = beta * pairs.lead
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def robust(pairs: Pairs, beta: float = 0.1, label_smoothing: float = 0.1) -> Float[Tensor, " P"]:
    """Compute DPO's loss without the bias of labels that are wrong with probability e.

    Chowdhury et al. 2024, "Provably Robust DPO", arXiv 2403.00409:
    (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e).
    """
    h = beta * pairs.lead
    both = -(1 - label_smoothing) * F.logsigmoid(h) + label_smoothing * F.logsigmoid(-h)
    return both / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, beta: float = 0.1) -> Float[Tensor, " P"]:
    """Compute max(0, 1 - beta * lead), SLiC's hinge on ratios to a reference.

    Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization",
    arXiv 2309.06657, "hinge-norm".
    """
    return F.relu(1 - beta * pairs.lead)


def slic(pairs: Pairs, margin: float = 1.0) -> Float[Tensor, " P"]:
    """Compute max(0, margin - log pi(y_w) + log pi(y_l)).

    Zhao et al. 2023, "SLiC-HF", arXiv 2305.10425; its regularizer is ``sft_weight``.
    """
    return F.relu(margin - pairs.chosen + pairs.rejected)


def ipo(pairs: Pairs, beta: float = 0.1) -> Float[Tensor, " P"]:
    """Compute (lead - 1 / (2 beta))^2, whose minimum is at a finite lead.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", arXiv 2310.12036, equation 17; its tau is beta.
    """
    return (pairs.lead - 1 / (2 * beta)).square()


def simpo(pairs: Pairs, beta: float = 2.0, margin: float = 1.0) -> Float[Tensor, " P"]:
    """Compute -log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - margin).

    Meng et al. 2024, "SimPO", arXiv 2405.14734, equation 6. ``pairs`` holds means over tokens.
    """
    return -F.logsigmoid(beta * (pairs.chosen - pairs.rejected) - margin)


def cpo(pairs: Pairs, beta: float = 0.1) -> Float[Tensor, " P"]:
    """Compute -log sigmoid(beta (log pi(y_w) - log pi(y_l))).

    Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417; the second
    term of its loss is ``sft_weight``.
    """
    return -F.logsigmoid(beta * (pairs.chosen - pairs.rejected))


def orpo(pairs: Pairs, beta: float = 0.1) -> Float[Tensor, " P"]:
    """Compute -beta log sigmoid(log odds(y_w) - log odds(y_l)), odds(y) = p / (1 - p).

    Hong et al. 2024, "ORPO", arXiv 2403.07691, equations 3, 4 and 7; its lambda is beta, its first
    term is ``sft_weight``. ``pairs`` holds means over tokens, so p is their geometric mean.
    """
    chosen, rejected = (each - _log1mexp(each) for each in (pairs.chosen, pairs.rejected))
    return -beta * F.logsigmoid(chosen - rejected)


def kto(pairs: Pairs, beta: float = 0.1) -> Float[Tensor, " P"]:
    """Compute 1 - sigmoid(beta (r - z_0)) and 1 - sigmoid(beta (z_0 - r)), and their mean.

    Ethayarajh et al. 2024, "KTO", arXiv 2402.01306, with both of its weights 1. r is
    log pi / pi_ref of a completion; the preferred one counts as desirable, the other as not, and
    neither is compared with the other.
    """
    desirable = torch.sigmoid(beta * (pairs.chosen - pairs.ref_chosen - pairs.kl))
    undesirable = torch.sigmoid(beta * (pairs.kl - pairs.rejected + pairs.ref_rejected))
    return 1 - 0.5 * (desirable + undesirable)


def _log1mexp(x: Tensor) -> Tensor:
    """Compute log(1 - e^x) for x < 0 without cancellation."""
    return torch.log(-torch.expm1(x.clamp(max=-1e-6)))


LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(sigmoid),
    "robust": PreferenceLoss(robust),
    "hinge": PreferenceLoss(hinge),
    "ipo": PreferenceLoss(ipo),
    "kto": PreferenceLoss(kto, needs_kl=True),
    "slic": PreferenceLoss(slic, needs_reference=False, sft_weight=1.0),
    "simpo": PreferenceLoss(simpo, needs_reference=False, per_token=True),
    "cpo": PreferenceLoss(cpo, needs_reference=False, sft_weight=1.0),
    "orpo": PreferenceLoss(orpo, needs_reference=False, per_token=True, sft_weight=1.0),
}
