import pytest
import torch
from torch import Tensor

from lightning_modules.ppo.advantages import GAE, GRPO, RLOO, gae, grpo, rloo, whiten


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


def test_rloo_by_hand() -> None:
    # 1 against the mean of 4 and 7; 4 against that of 1 and 7; 7 against that of 1 and 4.
    totals = torch.tensor([1.0, 4.0, 7.0, 2.0, 2.0, 2.0])
    assert rloo(totals, 3).tolist() == [-4.5, 0.0, 4.5, 0.0, 0.0, 0.0]


def test_grpo_by_hand() -> None:
    # Mean 4, standard deviation 3.
    totals = torch.tensor([1.0, 4.0, 7.0, 2.0, 2.0, 2.0])
    expected = torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(grpo(totals, 3), expected, atol=1e-4, rtol=0)
    assert grpo(totals, 3, scale=False).tolist() == [-3.0, 0.0, 3.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("reward", [0.1, -7.3, 1000.1])
@pytest.mark.parametrize("samples", [2, 3, 7])
def test_rewards_that_are_all_alike_teach_nothing(reward: float, samples: int) -> None:
    """Exactly: a rounding error over the 1e-4, or whitened, would be a large advantage."""
    totals = torch.full((2 * samples,), reward)
    assert not grpo(totals, samples).any()
    assert not rloo(totals, samples).any()
    mask = torch.ones(2 * samples, 3, dtype=torch.bool)
    assert not whiten(rloo(totals, samples)[:, None] * mask, mask).any()


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_rloo_and_grpo_match_the_slow_versions(samples: int) -> None:
    totals = torch.randn(4 * samples, generator=torch.Generator().manual_seed(3))
    fast = {"rloo": rloo(totals, samples), "grpo": grpo(totals, samples)}
    for i, reward in enumerate(totals.tolist()):
        group = range(i // samples * samples, (i // samples + 1) * samples)
        others = [totals[j].item() for j in group if j != i]
        assert fast["rloo"][i] == pytest.approx(reward - sum(others) / len(others), abs=1e-5)
        everyone = [totals[j].item() for j in group]
        mean = sum(everyone) / samples
        std = (sum((r - mean) ** 2 for r in everyone) / (samples - 1)) ** 0.5
        assert fast["grpo"][i] == pytest.approx((reward - mean) / (std + 1e-4), abs=1e-4)


@pytest.mark.parametrize("estimator", [RLOO(), GRPO(), GRPO(scale=False)])
def test_every_token_of_a_response_has_its_advantage(estimator: RLOO | GRPO) -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    # Penalties on the way and the score at the end: what counts is their sum, 0.5 and 2.
    rewards = torch.tensor([[-0.5, 1.0, 0.0], [0.0, -1.0, 3.0]])
    advantages, returns = estimator(rewards, torch.full((2, 3), 9.0), mask, 2)
    assert returns is None
    assert not advantages[~mask].any()
    assert advantages[0, 0] == advantages[0, 1] < 0 < advantages[1, 0] == advantages[1, 2]


def test_gae_is_the_function_of_its_name() -> None:
    rewards, values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(3, 4, dtype=torch.bool)
    credit = GAE(gamma=0.9, lam=0.7)(rewards, values, mask, samples=1)
    advantages, returns = gae(rewards, values, mask, 0.9, 0.7)
    assert credit.returns is not None
    assert torch.equal(credit.advantages, advantages)
    assert torch.equal(credit.returns, returns)
    with pytest.raises(ValueError, match="gamma must be in"):
        GAE(gamma=1.5)
