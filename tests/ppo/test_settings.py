"""Every setting of PPO changes the outcome, and what is out of range is refused."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import PPOPolicy
from lightning_modules.policies.kinds import LoRAPolicy, SoftPromptPolicy
from lightning_modules.ppo.advantages import GAE, GRPO, RLOO, ReinforcePlusPlus
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import ClassifierReward, FunctionReward
from tests.batches import loader, make_batch, make_trainer, settle
from tests.ppo.kinds import adamw, make_policy


def count_letters(predictions: list[str], *_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in predictions]


LETTERS = "tests.ppo.test_settings.count_letters"
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        ({}, change)
        for change in (
            {"temperature": 0.5},
            {"kl_coef": 5.0},
            {"epochs": 1},
            {"minibatch_size": 2},
            {"samples": 2},
            {"kl_estimator": "k2"},
            {"kl_estimator": "k3"},
            {"normalize_scores": True},
            {"unfinished_penalty": 3.0},
            {"advantage": GAE(gamma=0.5)},
            {"advantage": GAE(lam=0.1)},
            {"advantage": GAE(whiten=False)},
            {"reward_with_dialogue": True},
            {"reward_label": "hate"},
            {"extra_rewards": {"words": FunctionReward(LETTERS)}},
            {"clip": 1e-5},
            {"clip_high": 1e-5},
            {"dual_clip": 1.001},
            {"objective": "gspo"},
            {"objective": "cispo"},
            {"normalizer": "sequences"},
            {"advantage": ReinforcePlusPlus()},
            {"value_clip": 1e-5},
            {"value_weight": 5.0},
            {"max_grad_norm": 1e-4},
            {"max_new_tokens": 5},
            {"kl_target": 0.1},
            {"value_lr": 0.5},
            {"schedule": "linear"},
            {"schedule": "cosine"},
            {"warmup_fraction": 0.5},
            {"policy": LoRAPolicy(r=4, alpha=16)},
            {"policy": LoRAPolicy(r=4, alpha=8, use_rslora=True)},
            {"policy": LoRAPolicy(r=4, alpha=8, target_modules=["k", "o"])},
        )
    ),
    ({"kl_estimator": "k2"}, {"kl_in_loss": True}),
    ({"kl_target": 0.1}, {"kl_horizon": 10.0}),
    ({"samples": 2}, {"advantage": RLOO()}),
    ({"advantage": ReinforcePlusPlus()}, {"advantage": ReinforcePlusPlus(gamma=0.5)}),
    ({"advantage": ReinforcePlusPlus()}, {"advantage": ReinforcePlusPlus(normalize=False)}),
    ({"samples": 2, "advantage": RLOO()}, {"advantage": RLOO(normalize=True)}),
    ({"samples": 2, "advantage": RLOO()}, {"advantage": GRPO()}),
    ({"samples": 2, "advantage": GRPO()}, {"advantage": GRPO(scale=False)}),
    ({"samples": 2, "advantage": GRPO()}, {"advantage": GRPO(normalize=True)}),
    (
        {"extra_rewards": {"words": FunctionReward(LETTERS)}},
        {"extra_rewards": {"words": FunctionReward(LETTERS, weight=-1.0)}},
    ),
    (
        {"policy": SoftPromptPolicy(5, "text", "Be kind."), "optimizer": adamw(0.5)},
        {"policy": SoftPromptPolicy(5, "text", "Be short.")},
    ),
]
"""Settings that a change needs to matter, and the change."""


def show(settings: dict[str, Any]) -> str:
    return re.sub(r"( object)? at \w+|lightning_modules\S*\.", "", str(settings))


@pytest.mark.parametrize(("beside", "change"), SETTINGS, ids=show)
def test_every_setting_changes_the_outcome(
    outcome: Callable[..., torch.Tensor], beside: dict[str, Any], change: dict[str, Any]
) -> None:
    assert not torch.equal(outcome(**beside), outcome(**(beside | change)))


PPO_SETTINGS = {field.name for field in fields(PPOConfig)}


def test_no_setting_was_forgotten() -> None:
    """``microbatch_size`` changes no result; see test_the_step_does_not_depend_on_the_cut."""
    changed = {name for _, change in SETTINGS for name in change}
    assert changed >= PPO_SETTINGS - {"microbatch_size"}


def make_outcome(t5: str, roberta: str, folder: Path, **settings: Any) -> torch.Tensor:
    """Weights after two batches of rollouts."""
    batch = make_batch(t5)
    own = {name: value for name, value in settings.items() if name in PPO_SETTINGS}
    ppo = PPOConfig(**({"max_new_tokens": 10, "minibatch_size": 4, "epochs": 2} | own))
    others = {name: value for name, value in settings.items() if name not in PPO_SETTINGS}
    policy = settle(make_policy(t5, roberta, **({"optimizer": adamw(0.02)} | others), ppo=ppo))
    torch.manual_seed(8)
    make_trainer(folder).fit(policy, loader(batch, batch))
    return torch.cat([p.detach().flatten() for p in policy.parameters() if p.requires_grad])


@pytest.fixture(scope="module")
def outcome(
    t5: str, roberta: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., torch.Tensor]:
    """Return the outcome of settings, which is the same each time."""
    known: dict[str, torch.Tensor] = {}

    def find(**settings: Any) -> torch.Tensor:
        if str(settings) not in known:
            folder = tmp_path_factory.mktemp("outcome")
            known[str(settings)] = make_outcome(t5, roberta, folder, **settings)
        return known[str(settings)]

    plain = make_outcome(t5, roberta, tmp_path_factory.mktemp("again"))
    assert torch.equal(find(), plain)
    return find


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "clip": -1.0}, "epochs must be above 0, got 0; clip must be above 0"),
        ({"kl_in_loss": True}, "kl_in_loss needs kl_estimator k2"),
        ({"microbatch_size": 0}, "microbatch_size must be above 0"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_target changes nothing with kl_coef 0"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1, got 1.0"),
        ({"dual_clip": 3.0, "objective": "cispo"}, "has no effect with cispo"),
        ({"unfinished_penalty": -1.0}, "unfinished_penalty must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_a_minibatch_of_a_huge_ratio_takes_no_step(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_modules.ppo_policy.MAX_RATIO", 1.001)
    trainer = make_trainer(tmp_path)
    ppo = PPOConfig(max_new_tokens=10, minibatch_size=6, epochs=4)
    module = make_policy(t5, roberta, ppo=ppo, optimizer=adamw(0.5))
    trainer.fit(module, loader(make_batch(t5)))
    skipped = float(trainer.callback_metrics["ppo/policy/skipped"])
    assert 0 < skipped == 4 - trainer.global_step


# Rewards ----------------------------------------------------------------------------------------


def count_words(
    predictions: list[str], dialogues: list[str], references: list[list[str]], factor: int
) -> list[float]:
    assert len(predictions) == len(dialogues) == len(references)
    return [factor * float(len(text.split())) for text in predictions]


def test_every_term_of_the_reward_is_logged_and_weighed(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    extra = {
        "words": FunctionReward("tests.ppo.test_settings.count_words", {"factor": 2}, weight=-0.5),
        "hate": ClassifierReward(roberta, "hate", with_dialogue=True, weight=3.0),
    }
    trainer = make_trainer(tmp_path)
    trainer.fit(make_policy(t5, roberta, extra_rewards=extra), loader(make_batch(t5)))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    term = {name: found[f"objective/rewards/{name}"] for name in ("reward_model", *extra)}
    assert term["words"] > 0
    expected = term["reward_model"] - 0.5 * term["words"] + 3 * term["hate"]
    assert found["objective/reward"] == pytest.approx(expected, rel=1e-4)


def test_a_reward_needs_a_term_and_terms_their_own_names(t5: str, roberta: str) -> None:
    extra = {"reward_model": FunctionReward(LETTERS)}
    with pytest.raises(ValueError, match="choose another name than 'reward_model'"):
        make_policy(t5, roberta, extra_rewards=extra)
    assert list(PPOPolicy(t5, None, extra_rewards=extra).terms) == ["reward_model"]
    with pytest.raises(ValueError, match="PPO needs a reward"):
        PPOPolicy(t5, None)


def test_a_nan_score_stops_the_run_and_names_its_rows(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ClassifierReward,
        "score",
        lambda self, texts, device: torch.full((len(texts.summaries),), torch.nan),
    )
    with pytest.raises(FloatingPointError, match=r"rows row_0, .* no weight was changed"):
        make_trainer(tmp_path).fit(make_policy(t5, roberta), loader(make_batch(t5)))
