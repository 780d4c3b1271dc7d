import pytest
import torch
from torch import Tensor

from lightning_modules.ppo.advantages import gae, whiten


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of the GAE paper as it stands: a sum over the future for each step."""
    n = len(rewards)
    values = [*values, 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def test_gae_by_hand() -> None:
    # deltas: 1 + 0.5 - 1 = 0.5 and 2 - 0.5 = 1.5; A_1 = 0.5 + 0.5 * 1.5
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[1.25, 1.5]]))
    torch.testing.assert_close(returns, torch.tensor([[2.25, 2.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_matches_the_slow_version_on_ragged_rows(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 5, 7, generator=generator)
    lengths = [1, 3, 7, 5, 2]
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    # The value head's numbers behind EOS are garbage and must not matter.
    advantages, returns = gae(rewards * mask, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        expected = slow_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[row, :n], torch.tensor(expected))
        torch.testing.assert_close(returns[row, :n], torch.tensor(expected) + values[row, :n])
        assert not advantages[row, n:].any()
        assert not returns[row, n:].any()


def test_whiten_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0, 77.0]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    torch.testing.assert_close(
        whiten(values, mask, keep_mean=True), torch.tensor([[1.0, 3.0, 0.0]])
    )


def test_whiten_over_two_ranks_equals_one() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.3
    whole = whiten(values, mask)
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]

    # What both ranks hand to the reduction, in the order in which they call it.
    count = torch.stack([m.sum() for _, m in halves]).sum()
    total = sum((v * m).sum() for v, m in halves)
    squares = sum(((v - total / count).square() * m).sum() for v, m in halves)
    for (part, part_mask), rows in zip(halves, (whole[:2], whole[2:]), strict=True):
        sums: list[Tensor] = [torch.stack([count, total]), torch.as_tensor(squares)]
        result = whiten(part, part_mask, sum_over_ranks=lambda _, sums=sums: sums.pop(0))
        torch.testing.assert_close(result, rows)
