import math
from typing import Any

import pytest
import torch

from lightning_modules.ppo.kl import KLCoefficient, k1, k2, k3, per_sequence


def test_estimators_by_hand() -> None:
    logprobs, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert k1(logprobs, reference).item() == pytest.approx(math.log(2))
    assert k2(logprobs, reference).item() == pytest.approx(math.log(2) ** 2 / 2)
    # exp(-log 2) - 1 + log 2
    assert k3(logprobs, reference).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_estimators_have_the_exact_kl_as_expectation() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    q = torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    assert (p * k1(p.log(), q.log())).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    assert (k3(p.log(), q.log()) >= 0).all()
    assert (k1(p.log(), q.log()) < 0).any()


def gradient(logits: torch.Tensor, function: Any) -> torch.Tensor:
    """Gradient of a function of the log-probabilities that logits stand for."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits.log_softmax(-1)), logits)[0]


def test_as_a_loss_only_k2_has_the_gradient_of_the_kl() -> None:
    """Exact expectations over three tokens, the samples held fixed as in a loss."""
    logits = torch.tensor([0.5, -1.0, 0.3])
    p, q = logits.softmax(-1), torch.tensor([0.3, 0.3, 0.4])
    forward = gradient(logits, lambda lp: (lp.exp() * (lp - q.log())).sum())
    backward = gradient(logits, lambda lp: (q * (q.log() - lp)).sum())
    of = {k: gradient(logits, lambda lp, k=k: (p * k(lp, q.log())).sum()) for k in (k1, k2, k3)}
    torch.testing.assert_close(of[k2], forward)
    torch.testing.assert_close(of[k1], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(of[k3], backward)
    assert (forward - backward).abs().max() > 0.01


def test_per_sequence_sums_real_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert per_sequence(values, mask).tolist() == [3.0, 3.0]


def test_a_fixed_coefficient_stays() -> None:
    coefficient = KLCoefficient(0.2)
    coefficient.update(kl=100.0, sequences=64)
    assert coefficient.beta == 0.2


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),  # on target
        (6.6, 0.2 * (1 + 0.1 * 100 / 1000)),  # 10 % above
        (60.0, 0.2 * (1 + 0.2 * 100 / 1000)),  # far above: clipped at 0.2
        (0.0, 0.2 * (1 - 0.2 * 100 / 1000)),  # far below: clipped at -0.2
    ],
)
def test_an_adaptive_coefficient_by_hand(kl: float, expected: float) -> None:
    coefficient = KLCoefficient(0.2, target=6.0, horizon=1000)
    coefficient.update(kl, sequences=100)
    assert coefficient.beta == pytest.approx(expected)


def test_a_horizon_that_could_turn_betas_sign_is_refused() -> None:
    coefficient = KLCoefficient(0.2, target=6.0, horizon=13)
    coefficient.update(0.0, sequences=64)
    assert 0 < coefficient.beta < 0.2
    coefficient.horizon = 12.8
    with pytest.raises(ValueError, match=r"kl_horizon 12.8 .* 64 rollouts: .* above 12.8"):
        coefficient.update(0.0, sequences=64)
