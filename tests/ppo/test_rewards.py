import torch

from lightning_modules.ppo.rewards import penalise_unfinished, shape_rewards


def test_score_sits_on_the_last_real_token_and_kl_on_each() -> None:
    kl = torch.tensor([[0.5, -0.25, 9.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = shape_rewards(torch.tensor([2.0, -1.0]), kl, mask, beta=0.1)
    expected = torch.tensor([[-0.05, 0.025 + 2.0, 0.0], [-0.1, -0.2, -0.3 - 1.0]])
    torch.testing.assert_close(rewards, expected)


def test_without_kl_only_the_score_remains() -> None:
    mask = torch.tensor([[True, False]])
    rewards = shape_rewards(torch.tensor([3.0]), torch.ones(1, 2), mask, beta=0.0)
    assert rewards.tolist() == [[3.0, 0.0]]


def test_unfinished_summaries_lose_the_penalty() -> None:
    scores, finished = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert penalise_unfinished(scores, finished, 0.5).tolist() == [1.0, 0.5]
    assert penalise_unfinished(scores, finished, None).tolist() == [1.0, 1.0]
