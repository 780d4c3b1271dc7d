"""Losses, advantages, KL and whitening against other libraries, on the same tensors.

`pytest -m conformance` downloads their wheels once and skips what no index has. What differs, and
why, is in docs/conformance.md; here each difference is asserted, with its size.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.ppo.advantages import ReinforcePlusPlus, gae, grpo, rloo, whiten
from lightning_modules.ppo.kl import ESTIMATORS
from lightning_modules.ppo.losses import policy_loss, token_weights, value_loss
from lightning_modules.ppo.rewards import shape_rewards
from lightning_modules.preference_losses import LOSSES, Pairs
from tests.conformance.sources import take

pytestmark = pytest.mark.conformance

B, T, K = 6, 7, 3
GENERATOR = torch.Generator().manual_seed(5)
NEW, OLD, REF, VALUES, OLD_VALUES, ADVANTAGES = torch.randn(6, B, T, generator=GENERATOR)
LENGTHS = torch.tensor([7, 1, 3, 5, 7, 2])
MASK = torch.arange(T) < LENGTHS[:, None]
REAL = MASK.float()
SCORES = torch.randn(B, generator=GENERATOR)
REWARDS = shape_rewards(SCORES, (OLD - REF) * REAL, MASK, 0.3)


def same(found: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    if mask is not None:
        found, expected = found[mask], expected[mask]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def trl_core(*names: str) -> Any:
    return take("trl", "core.py", "masked_mean", "masked_var", *names)


def verl_tools() -> SimpleNamespace:
    file = "utils/torch_functional.py"
    names = ("masked_sum", "masked_mean", "masked_var", "masked_whiten")
    return SimpleNamespace(
        **{name: take("verl", file, *names[: i + 1]) for i, name in enumerate(names)}
    )


def verl(*names: str) -> Any:
    known = {"verl_F": verl_tools(), "defaultdict": defaultdict}
    known |= {"ActorConfig": Config, "AlgoConfig": type("AlgoConfig", (), {})}
    return take("verl", "trainer/ppo/core_algos.py", *names, **known)


class Config(SimpleNamespace):
    get = lambda self, name, default=None: getattr(self, name, default)  # noqa: E731


# Rewards and KL -----------------------------------------------------------------------------------


def test_rewards() -> None:
    own = SimpleNamespace(kl_ctl=SimpleNamespace(value=0.3), _kl_penalty=lambda a, b: a - b)
    found = take("trl", "trainer/ppo_trainer.py", "PPOTrainer.compute_rewards")(
        own, SCORES, OLD, REF, MASK.long()
    )
    same(found[0], REWARDS, MASK)
    find = take("torchtune", "rlhf/rewards.py", "get_rewards_ppo")
    found = find(SCORES, OLD, REF, 0.3, LENGTHS - 1)
    same(found[0], REWARDS, MASK)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators(name: str) -> None:
    of_verl = verl("kl_penalty_forward")
    of_openrlhf = take("openrlhf", "models/utils.py", "compute_approx_kl")
    far = torch.tensor([[-30.0, 30.0]])
    for new, ref in ((OLD, REF), (far, torch.zeros(1, 2))):
        ours = ESTIMATORS[name](new, ref)  # type: ignore[index]
        # By definition: a limited estimate is biased; ours has no limit.
        same(of_openrlhf(new, ref, kl_estimator=name), ours.clamp(-10, 10))
        same(of_verl(new, ref, name), ours.clamp(max=10) if name == "k3" else ours)


# Advantages ---------------------------------------------------------------------------------------


def test_gae() -> None:
    advantages, returns = gae(REWARDS, OLD_VALUES, MASK, 0.9, 0.8)
    config = SimpleNamespace(whiten_rewards=False, gamma=0.9, lam=0.8)
    white = trl_core("masked_whiten")
    find = take(
        "trl", "trainer/ppo_trainer.py", "PPOTrainer.compute_advantages", masked_whiten=white
    )
    _, theirs, their_returns = find(SimpleNamespace(config=config), OLD_VALUES, REWARDS, REAL)
    same(their_returns, returns, MASK)
    same(theirs, white(advantages, REAL), MASK)
    find = take("verl", "trainer/ppo/core_algos.py", "compute_gae_advantage_return",
                verl_F=verl_tools())  # fmt: skip
    theirs, their_returns = find(REWARDS, OLD_VALUES, REAL, 0.9, 0.8)
    same(their_returns, returns, MASK)
    same(theirs, verl_tools().masked_whiten(advantages, REAL), MASK)
    find = take("torchtune", "rlhf/rewards.py", "masked_mean", "masked_var", "whiten",
                "estimate_advantages")  # fmt: skip
    theirs, their_returns = find(OLD_VALUES * REAL, REWARDS, 0.9, 0.8, MASK)
    same(their_returns, returns, MASK)
    same(theirs - advantages[MASK].mean(), white(advantages, REAL), MASK)  # see below
    find = take("openrlhf", "trainer/ppo_utils/experience_maker.py",
                "RemoteExperienceMaker.get_advantages_and_returns")  # fmt: skip
    theirs, their_returns = find(None, OLD_VALUES, REWARDS, REAL, 0.9, 0.8)
    same(theirs, advantages, MASK)
    same(their_returns, returns, MASK)


def test_whitening_differs_by_bessels_correction() -> None:
    ours = whiten(ADVANTAGES, MASK)
    n = REAL.sum()
    theirs = trl_core("masked_whiten")(ADVANTAGES, REAL)
    same(theirs * (n / (n - 1)).sqrt(), ours, MASK)
    same(verl_tools().masked_whiten(ADVANTAGES, REAL), theirs, MASK)


def test_torchtune_adds_the_mean_that_it_subtracted() -> None:
    """By mistake: it inverts the condition of TRL's function, from which it says it is taken."""
    find = take("torchtune", "rlhf/rewards.py", "masked_mean", "masked_var", "whiten")
    shifted = ADVANTAGES + 5
    theirs = find(shifted, MASK)
    assert float(theirs[MASK].mean()) == pytest.approx(float(shifted[MASK].mean()), rel=1e-5)
    assert abs(float(whiten(shifted, MASK)[MASK].mean())) < 1e-6
    same(find(shifted, MASK, shift_mean=False), trl_core("masked_whiten")(shifted, REAL), MASK)


def test_estimators_without_a_value_head() -> None:
    index = [i // K for i in range(B)]
    totals = REWARDS.sum(dim=1)
    find = verl("compute_rloo_outcome_advantage")
    same(find(REWARDS, REAL, index)[0], rloo(totals, K)[:, None] * REAL)
    find = verl("compute_grpo_outcome_advantage")
    same(find(REWARDS, REAL, index, 1e-4)[0], grpo(totals, K)[:, None] * REAL)
    found = find(REWARDS, REAL, index, norm_adv_by_std_in_grpo=False)[0]
    same(found, grpo(totals, K, scale=False)[:, None] * REAL)
    config = Config(gamma=0.9)
    _, returns = verl("compute_reinforce_plus_plus_outcome_advantage")(REWARDS, REAL, config)
    same(returns, ReinforcePlusPlus(0.9)(REWARDS, VALUES, MASK, 1).advantages)


# Losses -------------------------------------------------------------------------------------------


def ours(normalizer: Any = "tokens", **settings: Any) -> Tensor:
    weights, total = token_weights(MASK, normalizer, T)
    return policy_loss(NEW, OLD, ADVANTAGES, MASK, weights=weights, **settings).loss / total


def test_policy_and_value_loss() -> None:
    expected = ours(clip=0.2)
    value = value_loss(VALUES, OLD_VALUES, REWARDS, REAL, 0.3) / REAL.sum()
    config = SimpleNamespace(cliprange_value=0.3, cliprange=0.2, vf_coef=1.0, ratio_threshold=1e9)
    find = take(
        "trl", "trainer/ppo_trainer.py", "PPOTrainer.loss",
        clip_by_value=trl_core("clip_by_value"), masked_var=trl_core(),
        masked_mean=take("trl", "core.py", "masked_mean"), flatten_dict=dict,
        entropy_from_logits=lambda logits: logits[..., 0],
    )  # fmt: skip
    logits = torch.zeros(B, T, 2)
    found = find(
        SimpleNamespace(config=config), OLD, OLD_VALUES, logits, VALUES, NEW, REAL, ADVANTAGES,
        REWARDS,
    )  # fmt: skip
    same(found[0], expected)
    same(found[1], value)
    mean = take("torchtune", "rlhf/rewards.py", "masked_mean")
    loss = take("torchtune", "rlhf/loss/ppo.py", "PPOLoss",
                rlhf=SimpleNamespace(masked_mean=mean))(0.2, 0.3, 1.0)  # fmt: skip
    found = loss(OLD, NEW, ADVANTAGES, OLD_VALUES, VALUES, REWARDS, MASK, MASK)
    same(found[1], expected)
    same(found[2], value)


@pytest.mark.parametrize(
    ("settings", "normalizer", "mode"),
    [
        ({"clip": 0.2, "dual_clip": 3.0}, "tokens", "token-mean"),
        ({"clip": 0.2, "clip_high": 0.28, "dual_clip": 1.5}, "sequences", "seq-mean-token-mean"),
        ({"clip": 0.1, "dual_clip": 3.0}, "max_tokens", "seq-mean-token-sum-norm"),
        ({"clip": 0.2, "objective": "gspo"}, "sequences", "seq-mean-token-mean"),
        ({"clip": 0.2, "objective": "cispo"}, "tokens", "token-mean"),
    ],
)
def test_policy_losses_of_verl(settings: dict[str, Any], normalizer: str, mode: str) -> None:
    kind = settings.get("objective", "vanilla")
    config = Config(
        clip_ratio=settings["clip"], clip_ratio_low=None,
        clip_ratio_high=settings.get("clip_high"), clip_ratio_c=settings.get("dual_clip", 3.0),
        global_batch_info={},
    )  # fmt: skip
    if kind == "cispo":
        config.clip_ratio_low = config.clip_ratio_high = settings["clip"]
    loss = verl("agg_loss", f"compute_policy_loss_{kind}")
    found, _ = loss(OLD, NEW, ADVANTAGES, REAL, mode, config)
    same(found, ours(normalizer, **settings))


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"clip": 0.2, "clip_high": 0.3}, {}),
        ({"clip": 0.2, "dual_clip": 2.0}, {"dual_clip": 2.0}),
        ({"clip": 0.2, "objective": "gspo", "normalizer": "sequences"},
         {"policy_loss_type": "gspo"}),
    ],
)  # fmt: skip
def test_policy_losses_of_openrlhf(settings: dict[str, Any], theirs: dict[str, Any]) -> None:
    names = ("aggregate_loss", "PolicyLoss")
    loss = take("openrlhf", "models/loss.py", *names, masked_mean=masked_mean)
    low, high = settings["clip"], settings.get("clip_high", settings["clip"])
    found = loss(low, high, **theirs)(NEW, OLD, ADVANTAGES, REAL)[0]
    same(found, ours(**settings))


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return (values * mask).sum(dim) / mask.sum(dim)


PAIRS = Pairs(*(-3 * torch.rand(4, B, generator=GENERATOR)), kl=torch.tensor(0.4))
DEVICE = SimpleNamespace(device="cpu", gather=lambda x: x)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "hinge", "ipo"])
def test_losses_of_dpos_relatives(name: str) -> None:
    own = SimpleNamespace(
        accelerator=DEVICE, reference_free=False, f_divergence_type="reverse_kl", beta=0.3,
        label_smoothing=0.1, loss_type=name,
    )  # fmt: skip
    other = SimpleNamespace(value="other")
    kinds = SimpleNamespace(ALPHA_DIVERGENCE=other, JS_DIVERGENCE=other)
    find = take("trl", "trainer/dpo_trainer.py", "DPOTrainer.dpo_loss", FDivergenceType=kinds)
    settings = {"beta": 0.3} | ({"label_smoothing": 0.1} if name in ("sigmoid", "robust") else {})
    expected = LOSSES[name].compute(PAIRS, **settings)
    same(find(own, *PAIRS[:4])[0], expected)
    if name == "sigmoid":
        loss = take("torchtune", "rlhf/loss/dpo.py", "DPOLoss")(0.3, 0.1)
        same(loss(*PAIRS[:4])[0], expected)


def test_losses_without_a_reference_and_kto() -> None:
    own = SimpleNamespace(
        accelerator=DEVICE, beta=2.0, label_smoothing=0.0, alpha=0.0, simpo_gamma=1.0
    )
    for library, folder in (("trl", "trainer"), ("trl-now", "experimental")):
        cpo, orpo = ("", "") if library == "trl" else ("cpo/", "orpo/")
        find = take(library, f"{folder}/{cpo}cpo_trainer.py", "CPOTrainer.cpo_loss")
        own.beta = 2.0
        for name, kind in (("simpo", "simpo"), ("cpo", "sigmoid")):
            own.loss_type = kind
            found = find(own, PAIRS.chosen, PAIRS.rejected)[0]
            same(found, LOSSES[name].compute(PAIRS, beta=2.0))
        find = take(library, f"{folder}/{orpo}orpo_trainer.py", "ORPOTrainer.odds_ratio_loss",
                    log1mexp=lambda x: torch.log1p(-x.exp()))  # fmt: skip
        own.beta = 0.1
        same(-find(own, PAIRS.chosen, PAIRS.rejected)[0], LOSSES["orpo"].compute(PAIRS))
    own = SimpleNamespace(
        accelerator=DEVICE, calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.0,
        undesirable_weight=1.0,
    )  # fmt: skip
    find = take("trl", "trainer/kto_trainer.py", "KTOTrainer.kto_loss")
    kl = torch.full((B,), 0.4)
    found = find(
        own, PAIRS.chosen, PAIRS.rejected, kl, PAIRS.ref_chosen, PAIRS.ref_rejected,
        torch.zeros(B),
    )[0]  # fmt: skip
    desirable, undesirable = found.chunk(2)
    same((desirable + undesirable) / 2, LOSSES["kto"].compute(PAIRS, beta=0.3))
