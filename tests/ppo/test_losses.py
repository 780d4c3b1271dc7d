import math
from typing import Any

import pytest
import torch

from lightning_modules.ppo.losses import (
    explained_variance,
    policy_loss,
    token_weights,
    value_loss,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0),  # where every first epoch starts
        (1.1, 2.0, -2.2, 0),  # inside the interval
        (1.5, 2.0, -2.4, 1),  # good token, already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, 0),  # good token made less likely: full gradient
        (1.5, -2.0, 3.0, 0),  # bad token made likelier: full gradient
        (0.5, -2.0, 1.6, 1),  # bad token, already less likely: clipped at 0.8
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: int) -> None:
    result = policy_loss(
        torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[advantage]]), ONE, 0.2
    )
    assert result.loss.item() == pytest.approx(loss)
    assert result.clipped.item() == clipped
    assert result.ratio.item() == pytest.approx(ratio)
    assert result.approx_kl.item() == pytest.approx(0.5 * math.log(ratio) ** 2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "settings", "loss", "clipped"),
    [
        (1.3, 2.0, {"clip_high": 0.28}, -2.56, 1),  # clipped at 1.28, not at 1.2
        (1.25, 2.0, {"clip_high": 0.28}, -2.5, 0),
        (0.5, -2.0, {"clip_high": 0.28}, 1.6, 1),  # the lower bound is that of `clip`
        (5.0, -2.0, {"dual_clip": 3.0}, 6.0, 1),  # 10 without the second clip
        (5.0, 2.0, {"dual_clip": 3.0}, -2.4, 1),  # positive advantages are clipped once
        (1.5, 2.0, {"objective": "cispo"}, -2.4 * math.log(1.5), 1),
        (1.5, -2.0, {"objective": "cispo"}, 2.4 * math.log(1.5), 1),
    ],
)
def test_other_objectives_by_hand(
    ratio: float, advantage: float, settings: Any, loss: float, clipped: int
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    advantages = torch.tensor([[advantage]])
    result = policy_loss(logprobs, torch.zeros(1, 1), advantages, ONE, **settings)
    assert result.loss.item() == pytest.approx(loss)
    assert result.clipped.item() == clipped
    result.loss.backward()
    assert logprobs.grad is not None
    if settings.get("objective") == "cispo":  # a clipped token keeps the gradient of its weight
        assert logprobs.grad.item() == pytest.approx(-1.2 * advantage)


def test_a_response_has_one_ratio_with_gspo() -> None:
    # Ratios 1.5 and 0.6: their geometric mean is sqrt(0.9), and the padding has no part.
    logprobs = torch.tensor([[math.log(1.5), math.log(0.6), 9.0]])
    mask = torch.tensor([[True, True, False]])
    result = policy_loss(logprobs, torch.zeros(1, 3), torch.ones(1, 3), mask, 0.2, objective="gspo")
    assert result.loss.item() == pytest.approx(-2 * math.sqrt(0.9))
    assert result.ratio.item() == pytest.approx(2 * math.sqrt(0.9))


@pytest.mark.parametrize(
    ("normalizer", "weights", "total"),
    [
        ("tokens", [[1, 0, 0], [1, 1, 1]], 4),
        ("sequences", [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], 2),
        ("max_tokens", [[1, 0, 0], [1, 1, 1]], 20),
    ],
)
def test_the_weights_of_tokens_by_hand(normalizer: Any, weights: Any, total: float) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    found = token_weights(mask, normalizer, max_new_tokens=10)
    torch.testing.assert_close(found[0], torch.tensor(weights, dtype=torch.float32))
    assert found[1].item() == pytest.approx(total)


def test_a_clipped_token_has_no_gradient() -> None:
    logprobs = torch.tensor([[math.log(1.5), math.log(1.1)]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), mask).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0] == 0
    assert logprobs.grad[0, 1].item() == pytest.approx(-1.1)


def test_tokens_outside_the_mask_have_no_part() -> None:
    logprobs = torch.tensor([[0.0, 1e30]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    result = policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), mask)
    result.loss.backward()
    assert [x.item() for x in result] == [-1.0, 1.0, 0.0, 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 0.0]]


def test_a_ratio_out_of_all_bounds_stays_a_number() -> None:
    logprobs = torch.tensor([[100.0, -100.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros(1, 2), -torch.ones(1, 2), mask)
    result.loss.backward()
    assert result.ratio.item() == pytest.approx(math.exp(20) + math.exp(-20))
    assert result.loss.item() == pytest.approx(math.exp(20) + 0.8)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


def test_sums_do_not_depend_on_the_cut() -> None:
    generator = torch.Generator().manual_seed(3)
    new, old, advantages = torch.randn(3, 8, 5, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (8, 1), generator=generator)
    whole = torch.stack([*policy_loss(new, old, advantages, mask)])
    parts = sum(
        torch.stack([*policy_loss(new[r], old[r], advantages[r], mask[r])])
        for r in torch.arange(8).split([1, 3, 4])
    )
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize(
    ("value", "loss"),
    [
        (1.1, 0.5 * 0.9**2),  # moved by 0.1: not clipped
        (1.8, 0.5 * 0.8**2),  # clipped to 1.2, and the worse of 0.2 and 0.8 counts
        (0.0, 0.5 * 2.0**2),  # moved away from the return: the unclipped one is worse
    ],
)
def test_value_loss_by_hand(value: float, loss: float) -> None:
    result = value_loss(
        torch.tensor([[value]]), torch.tensor([[1.0]]), torch.tensor([[2.0]]), ONE, 0.2
    )
    assert result.item() == pytest.approx(loss)


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[0.0, 2.0, 50.0]])
    mask = torch.tensor([[True, True, False]])
    assert explained_variance(returns, returns, mask).item() == 1
    assert explained_variance(torch.ones(1, 3), returns, mask).item() == 0
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(1 - 4)
