"""What is logged of a batch, by hand, and what a run of PPO starts from unless told otherwise."""

import math

import pytest
import torch

from lightning_modules.backbones import Prompts
from lightning_modules.ppo import metrics
from lightning_modules.ppo.advantages import Credit
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.update import Sums
from lightning_modules.ppo.value_head import ValueHead
from lightning_modules.ppo_policy import adamw

MASK = torch.tensor([[True, True, True], [True, False, False]])


def make_rollout() -> Rollout:
    """Responses of three tokens, without EOS, and of EOS alone; d is log 2, -log 2, 0 and log 4."""
    reference = torch.full((2, 3), -1.0) * MASK
    gaps = torch.tensor([[math.log(2), -math.log(2), 0.0], [math.log(4), 0.0, 0.0]])
    return Rollout(
        prompts=Prompts(torch.ones(2, 1), torch.ones(2, 1)),
        owner=torch.arange(2),
        responses=torch.tensor([[5, 6, 7], [1, 0, 0]]),
        mask=MASK,
        finished=torch.tensor([False, True]),
        logprobs=reference + gaps,
        ref_logprobs=reference,
        values=torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]]),
        entropy=torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]]),
    )


def test_what_ppo_is_after_by_hand() -> None:
    scores, shaped = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5])
    advantages = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]])
    returns = torch.tensor([[2.0, 3.0, 4.0], [5.0, 0.0, 0.0]])
    found = metrics.rollout_metrics(
        make_rollout(), {"letters": scores}, scores, shaped, Credit(advantages, returns), 0.5
    )
    kl = math.log(4) / 2  # of 0 and log 4
    # exp(-d) - 1 + d: 1/2 - 1 + log 2, 2 - 1 - log 2 and 0, together 1/2; and 1/4 - 1 + log 4.
    k3 = (0.5 + 0.25 - 1 + math.log(4)) / 2
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            "objective/reward": 2.0, "objective/score": 1.0, "objective/kl": kl,
            "objective/kl_k3": k3, "objective/entropy": 3.0, "objective/kl_coef": 0.5,
            "objective/rlhf_reward": 1.0 - 0.5 * kl, "rollout/length": 2.0,
            "rollout/eos_rate": 0.5, "objective/rewards/letters": 2.0,
            "ppo/advantages/mean": 3.0, "ppo/returns/mean": 3.5,
            "ppo/val/explained_variance": 1.0,  # each is off by 1: a constant explains the rest
        }
    )  # fmt: skip


def test_update_metrics_are_means_over_the_weights_or_tokens_of_all_minibatches() -> None:
    steps = torch.tensor(
        [[-8.0, 3.4, 1.0, 0.3, 1.0, 0.8, 3.0, 6.0], [0.0, 1.0, 0.0, 0.1, 1.0, 0.0, 1.0, 2.0]]
    )
    found = metrics.update_metrics([Sums(*step) for step in steps])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            "ppo/policy/loss": -1.0, "ppo/policy/ratio": 1.1, "ppo/policy/clipfrac": 0.25,
            "ppo/policy/approxkl": 0.1, "ppo/policy/kl_loss": 0.1, "ppo/val/loss": 0.25,
        }
    )  # fmt: skip


def test_the_value_head_starts_as_in_the_n_plus_details() -> None:
    """N(0, 1 / sqrt(d + 1)), bias 0, and fp32 under bf16."""
    torch.manual_seed(0)
    head = ValueHead(4095)
    assert float(head.linear.weight.std()) == pytest.approx(1 / 64, rel=0.05)
    assert float(head.linear.bias) == 0
    with torch.autocast("cpu", torch.bfloat16):
        values = head(torch.ones(2, 3, 4095, dtype=torch.bfloat16))
    assert values.shape == (2, 3)
    assert values.dtype == torch.float32


def test_the_optimizer_has_ppos_epsilon() -> None:
    (group,) = adamw([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert group["eps"] == 1e-5
    assert group["weight_decay"] == 0
