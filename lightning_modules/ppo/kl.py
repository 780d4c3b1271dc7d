"""KL divergence between policy and reference, and the coefficient that weighs it in the reward."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


def k1(logprobs: Float[Tensor, "*B"], ref_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Estimate the KL by the log-ratio: unbiased, of either sign.

    Schulman 2020, "Approximating KL Divergence", estimator k1, for samples from the policy.

    Args:
        logprobs: log pi(y_t) of the sampled tokens, nats.
        ref_logprobs: log pi_ref(y_t) of the same tokens.

    Returns:
        d_t = log pi(y_t) - log pi_ref(y_t).
    """
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*B"], ref_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Estimate the KL by d^2 / 2: biased but small, never negative.

    Only k2 works as a loss: on samples from the policy its gradient, d * grad log pi, is on average
    the gradient of KL(pi, pi_ref). The gradient of k1 is grad log pi, 0 on average; that of k3 is
    (1 - exp(-d)) * grad log pi, the gradient of KL(pi_ref, pi).

    Schulman 2020, estimator k2.
    """
    return k1(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Float[Tensor, "*B"], ref_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Estimate the KL by exp(-d) - 1 + d: unbiased, never negative, less variance.

    Schulman 2020, estimator k3.
    """
    d = k1(logprobs, ref_logprobs)
    return (-d).exp() - 1 + d


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""The estimators by their names."""


def per_sequence(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum per-token values over the real tokens of each row."""
    return (values * mask).sum(dim=1)


@dataclass
class KLCoefficient:
    """The weight beta of the KL in the reward: fixed or adaptive.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2, with the
    constant of their code: e = clip(KL / target - 1, -0.2, 0.2), beta <- beta (1 + e n / horizon).

    Args:
        beta: Current value.
        target: Sequence KL to aim at, nats; None keeps beta fixed.
        horizon: Number of sequences over which beta changes by the factor 1 + e.
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, sequences: int) -> None:
        """Move beta after a batch of ``sequences`` rows with mean sequence KL ``kl``.

        Raises:
            ValueError: If a batch of this size could make beta 0 or negative.
        """
        if self.target is None:
            return
        if 0.2 * sequences >= self.horizon:
            raise ValueError(
                f"kl_horizon {self.horizon:g} is too short for batches of {sequences} rollouts: "
                f"beta could fall to 0 or below in one; set it above {0.2 * sequences:g}"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * sequences / self.horizon
