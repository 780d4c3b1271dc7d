"""PPOPolicy end to end on tiny models: what holds at step 0, after it, and in what it leaves."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from lightning_modules import PPOPolicy
from lightning_modules.backbones import Backbone, Prompts
from lightning_modules.policies import kinds as kinds_module
from lightning_modules.policies.gate import GateError
from lightning_modules.policies.kinds import (
    FullPolicy,
    LoRAPolicy,
    MergedPolicy,
    SoftPromptPolicy,
)
from lightning_modules.ppo import losses
from lightning_modules.ppo import rollout as rollout_module
from lightning_modules.ppo import update as update_module
from lightning_modules.ppo.advantages import GAE, GRPO, RLOO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import ClassifierReward, FunctionReward
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer, settle

DECODING = Decoding(max_new_tokens=10)
PPO = PPOConfig(max_new_tokens=10, minibatch_size=4, epochs=3)


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def make_policy(t5: str, roberta: str, **settings: Any) -> PPOPolicy:
    defaults: dict[str, Any] = {
        "policy": LoRAPolicy(r=4, alpha=8),
        "ppo": PPO,
        "decoding": DECODING,
        "optimizer": adamw(0.01),
    }
    return PPOPolicy(backbone=t5, reward_model=roberta, **(defaults | settings))


def logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


DECODER = r".*decoder.*\.(q|v)"
KINDS: dict[str, dict[str, Any]] = {
    "fresh LoRA": {"policy": LoRAPolicy(r=4, alpha=8)},
    "trained LoRA": {"adapter": "lora"},
    "decoder LoRA": {"policy": LoRAPolicy(r=4, alpha=8, target_modules=DECODER)},
    "merged": {"policy": MergedPolicy(r=4, alpha=8), "adapter": "lora"},
    "fresh soft prompt": {"policy": SoftPromptPolicy(virtual_tokens=5)},
    "trained soft prompt": {"policy": SoftPromptPolicy(virtual_tokens=5), "adapter": "soft"},
    "full": {"policy": FullPolicy()},
    "full decoder": {"policy": FullPolicy(train_encoder=False)},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {},
    "rloo": {"advantage": RLOO(), "ppo": replace(PPO, samples=3)},
    "grpo": {"advantage": GRPO(), "ppo": replace(PPO, samples=3)},
}
kinds_and_estimators = pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        *((kind, "gae") for kind in KINDS),
        ("fresh LoRA", "rloo"),
        ("fresh LoRA", "grpo"),
        ("decoder LoRA", "rloo"),
    ],
)


@pytest.fixture
def make_kind(
    t5: str, roberta: str, trained_adapter: str, trained_soft_prompt: str
) -> Callable[..., PPOPolicy]:
    """Make a policy of a kind."""
    folders = {"lora": trained_adapter, "soft": trained_soft_prompt}

    def make(kind: str, **settings: Any) -> PPOPolicy:
        chosen = dict(KINDS[kind])
        if "adapter" in chosen:
            chosen["adapter"] = folders[chosen["adapter"]]
        return make_policy(t5, roberta, **(chosen | settings))

    return make


@kinds_and_estimators
def test_step_zero(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str, estimator: str
) -> None:
    module = make_kind(kind, optimizer=sgd(0.0), **ESTIMATORS[estimator])
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(make_batch(t5)))
    found = logged(trainer)
    assert abs(found["objective/kl"]) < 1e-4
    assert found["ppo/policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["ppo/policy/approxkl"] < 1e-8
    assert found["ppo/policy/clipfrac"] == 0


@every_kind
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learning_rate_zero_keeps_every_log_ratio_at_zero(
    make_kind: Callable[..., PPOPolicy],
    t5: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: str,
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(update_module, "policy_loss", log_ratios_into(seen))
    module = make_kind(kind, optimizer=sgd(0.0))
    batch = make_batch(t5)
    make_trainer(tmp_path, precision=precision).fit(module, loader(batch, batch))
    assert len(seen) == 2 * 3 * 2  # batches, epochs, minibatches of 6 rows by 4
    # In bf16 passes of other shapes round differently; the gate's bound is 0.2.
    assert max(seen) < (1e-5 if precision == "32-true" else 0.2)


@pytest.mark.parametrize(
    ("precision", "passes"),
    [
        ("32-true", 1),  # the reference's
        ("bf16-mixed", 2),  # and the policy's over what it has drawn
    ],
)
def test_what_the_sampler_computed_is_reused_in_fp32_only(
    t5: str,
    roberta: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    passes: int,
) -> None:
    made: list[Any] = []
    real = rollout_module.score_in_chunks
    monkeypatch.setattr(
        rollout_module,
        "score_in_chunks",
        lambda *each, **more: made.append(0) or real(*each, **more),
    )
    module = settle(make_policy(t5, roberta, ppo=PPO))
    module.gate_passed = True
    make_trainer(tmp_path, precision=precision).fit(module, loader(make_batch(t5)))
    assert len(made) == passes


def log_ratios_into(seen: list[float]) -> Any:
    def spy(logprobs: Any, old: Any, advantages: Any, mask: Any, clip: float) -> Any:
        seen.append(float((logprobs - old).abs()[mask].max()))
        return losses.policy_loss(logprobs, old, advantages, mask, clip)

    return spy


@every_kind
def test_every_kind_learns_and_its_reference_stays(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    module = settle(make_kind(kind, optimizer=adamw(0.02)))
    batch = make_batch(t5)

    def read(backbone: Backbone) -> torch.Tensor:
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        ones = torch.ones(6, 5, dtype=torch.bool)
        tokens = torch.arange(30).reshape(6, 5) + 40
        with torch.no_grad():
            return backbone.score(backbone.read(prompts), tokens, ones).logprobs

    before = read(module.backbone)
    with module.open_reference() as reference:
        torch.testing.assert_close(read(reference), before, atol=1e-5, rtol=0)
    frozen = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(batch, batch))
    own = dict(module.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in frozen.items())
    assert all(not torch.equal(own[name], value) for name, value in trained.items()) or (
        kind.startswith("full")
    )
    assert (read(module.backbone) - before).abs().max() > 0.01
    with module.open_reference() as reference:
        torch.testing.assert_close(read(reference), before, atol=1e-5, rtol=0)
    assert logged(trainer)["objective/kl"] != 0


@every_kind
def test_every_kind_exports_what_plain_libraries_load(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    module = make_kind(kind, optimizer=adamw(0.05))
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    module.export(tmp_path / "export")
    plain: Any
    if (tmp_path / "export" / "adapter_config.json").exists():
        assert not (tmp_path / "export" / "reference").exists()
        plain = PeftModel.from_pretrained(
            AutoModelForSeq2SeqLM.from_pretrained(t5), tmp_path / "export"
        )
    else:
        plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    assert isinstance(plain, PeftModel) == ("LoRA" in kind or "soft" in kind)
    module.eval()
    trained = module.generate(batch)
    assert module.backbone.with_model(plain.eval()).generate(batch, module.decoding) == trained
    with module.open_reference() as reference:
        assert reference.generate(batch, module.decoding) != trained


@pytest.mark.parametrize("kind", ["decoder LoRA", "full decoder"])
def test_a_frozen_encoder_runs_once_for_all_roles_and_epochs(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    passes: list[int] = []
    module = settle(make_kind(kind))
    module.gate_passed = True  # which looks for itself
    assert module.backbone.pad_is_token  # which reads a prompt of its own, once
    first = module.model.get_encoder().block[0]
    first.register_forward_hook(lambda *_: passes.append(1))
    make_trainer(tmp_path).fit(module, loader(make_batch(t5)))
    assert len(passes) == 1


def test_policy_and_reference_of_a_full_policy_share_a_frozen_encoder(
    make_kind: Callable[..., PPOPolicy], t5: str
) -> None:
    whole = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_pretrained(t5).parameters())
    apart, shared = (settle(make_kind(kind)) for kind in ("full", "full decoder"))
    assert apart.count_parameters() == (whole + 33, 2 * whole + 33)
    trained, total = shared.count_parameters()
    assert total - trained == whole
    assert trained < whole


def test_a_reference_that_is_not_the_start_stops_the_run(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original notebook's fault: adapter trained, reference the bare backbone."""
    monkeypatch.setattr(kinds_module, "copy_as_reference", lambda model: None)
    module = make_policy(t5, roberta, adapter=trained_adapter)
    with pytest.raises(GateError, match="reference is not the policy"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


def test_only_policy_and_value_head_are_trained(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path
) -> None:
    module = settle(make_policy(t5, roberta, adapter=trained_adapter))
    before = {name: p.clone() for name, p in module.named_parameters()}
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n in before if ".default." in n or n.startswith("value_head")}
    assert moved == trained
    assert {n for n, p in module.named_parameters() if p.requires_grad} == trained


def test_the_roles_share_one_backbone(t5: str, roberta: str, trained_adapter: str) -> None:
    module = settle(make_policy(t5, roberta, adapter=trained_adapter))
    own = sum(p.numel() for n, p in module.model.named_parameters() if "lora" not in n)
    plain = AutoModelForSeq2SeqLM.from_pretrained(t5)
    assert own == sum(p.numel() for p in plain.parameters())
    lora = sum(p.numel() for n, p in module.model.named_parameters() if ".default." in n)
    assert module.count_parameters() == (lora + 33, own + 2 * lora + 33)


def test_reference_stays_the_trained_adapter(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path
) -> None:
    module = make_policy(t5, roberta, adapter=trained_adapter)
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    module.eval()
    sft = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(t5), trained_adapter)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}  # type: ignore[literal-required]
    with torch.no_grad():
        expected = sft.eval()(**inputs).logits
        with module.open_reference():
            torch.testing.assert_close(module.model(**inputs).logits, expected)
        assert not torch.allclose(module.model(**inputs).logits, expected, atol=1e-3)


def test_checkpoint_holds_trained_weights_only_and_resumes(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    batch = make_batch(t5)
    module = make_policy(t5, roberta, ppo=PPOConfig(max_new_tokens=8, kl_target=1.0, kl_horizon=10))
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(module, loader(batch, batch))
    path = tmp_path / "state.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert all(".default." in n or n.startswith("value_head") for n in checkpoint["state_dict"])
    assert checkpoint["ppo"]["kl_coef"] == module.kl_coef.beta != 0.05
    again = make_policy(t5, roberta, ppo=PPOConfig(max_new_tokens=8, kl_target=1.0, kl_horizon=10))
    make_trainer(tmp_path).test(again, loader(batch), ckpt_path=path, weights_only=True)
    assert again.kl_coef.beta == module.kl_coef.beta
    for name, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_a_fresh_soft_prompt_brings_its_reference_along(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    """It was drawn as the run began and is nowhere else; a test or a replay has another seed."""
    path, batch = tmp_path / "state.ckpt", make_batch(t5)

    def make() -> PPOPolicy:
        return make_policy(t5, roberta, policy=SoftPromptPolicy(5), optimizer=adamw(0.5))

    torch.manual_seed(1)
    module, again = make(), make()
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(module, loader(batch))
    trainer.save_checkpoint(path)
    torch.manual_seed(2)
    make_trainer(tmp_path).test(again, loader(batch), ckpt_path=path, weights_only=True)
    for name in ("default", "reference"):
        one, other = (each.model.prompt_encoder[name].embedding.weight for each in (module, again))
        assert torch.equal(one, other)
    assert again.fingerprint == module.fingerprint


def test_the_test_step_gives_texts_of_before_and_after(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    module = make_policy(t5, roberta, optimizer=adamw(0.1))
    batch = make_batch(t5)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, loader(batch, batch))
    module.eval()
    module.trainer = trainer
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    output = module.test_step(batch, 0)
    with module.model.disable_adapter():
        assert output["predictions_before"] == module.generate(batch)
    assert output["predictions"] == module.generate(batch)
    assert output["predictions"] != output["predictions_before"]


SAMPLED = Decoding(max_new_tokens=10, do_sample=True)


def sample_in_test(module: PPOPolicy, folder: Path, seed: int, **where: Any) -> list[list[str]]:
    """Test on the same batch twice; give the texts of before and of after, each of both batches."""
    found: list[list[str]] = [[], []]

    class Collector(Callback):
        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
            found[0] += outputs["predictions_before"]
            found[1] += outputs["predictions"]

    torch.manual_seed(seed)
    batch = make_batch(module.backbone_name)
    trainer = make_trainer(folder, callbacks=[Collector()])
    trainer.test(module, loader(batch, batch), verbose=False, **where)
    return found


@every_kind
def test_sampled_texts_of_two_policies_that_are_one_are_the_same(
    make_kind: Callable[..., PPOPolicy], tmp_path: Path, kind: str
) -> None:
    before, after = sample_in_test(settle(make_kind(kind, decoding=SAMPLED)), tmp_path, 5)
    assert before == after
    assert after[:6] != after[6:]  # the second batch, of the same rows, has its own numbers


def test_a_test_samples_by_the_seed_of_its_command(t5: str, roberta: str, tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    torch.manual_seed(1)
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(make_policy(t5, roberta), loader(make_batch(t5)))
    trainer.save_checkpoint(path)

    def test(seed: int) -> list[list[str]]:
        module = make_policy(t5, roberta, decoding=SAMPLED)
        return sample_in_test(module, tmp_path, seed, ckpt_path=path, weights_only=True)

    first = test(5)
    assert first[0] != first[1]
    assert test(5) == first
    assert test(6) != first


def count_letters(predictions: list[str]) -> list[float]:
    return [len(set(text)) / 10 for text in predictions]


LETTERS = "tests.ppo.test_policy.count_letters"
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        ({}, change)
        for change in (
            {"temperature": 0.5},
            {"kl_coef": 5.0},
            {"epochs": 1},
            {"minibatch_size": 2},
            {"samples": 2},
            {"stop_kl": 1e-6},
            {"kl_estimator": "k2"},
            {"kl_estimator": "k3"},
            {"normalise_scores": True},
            {"score_clip": 0.01},
            {"unfinished_penalty": 3.0},
            {"advantage": GAE(gamma=0.5)},
            {"advantage": GAE(lam=0.1)},
            {"advantage": GAE(whiten=False)},
            {"reward_with_dialogue": True},
            {"reward_label": "hate"},
            {"extra_rewards": {"words": FunctionReward(LETTERS)}},
            {"clip": 1e-5},
            {"value_clip": 1e-5},
            {"value_weight": 5.0},
            {"whiten_rewards": True},
            {"max_grad_norm": 1e-4},
            {"ratio_guard": 1.0000001},
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
    ({"samples": 2, "advantage": RLOO()}, {"advantage": RLOO(whiten=True)}),
    ({"samples": 2, "advantage": RLOO()}, {"advantage": GRPO()}),
    ({"samples": 2, "advantage": GRPO()}, {"advantage": GRPO(scale=False)}),
    ({"samples": 2, "advantage": GRPO()}, {"advantage": GRPO(whiten=True)}),
    (
        {"extra_rewards": {"words": FunctionReward(LETTERS)}},
        {"extra_rewards": {"words": FunctionReward(LETTERS, weight=-1.0)}},
    ),
    (
        {"policy": SoftPromptPolicy(virtual_tokens=5), "optimizer": adamw(0.5)},
        {"policy": SoftPromptPolicy(virtual_tokens=5, init="random")},
    ),
    (
        {"policy": SoftPromptPolicy(5, "text", "Be kind."), "optimizer": adamw(0.5)},
        {"policy": SoftPromptPolicy(5, "text", "Be short.")},
    ),
]
"""Settings, and what is changed of them. The first has all that the change needs to matter, so that
the change alone makes the difference."""


def show(settings: dict[str, Any]) -> str:
    return re.sub(r"( object)? at \w+|lightning_modules\S*\.", "", str(settings))


@pytest.mark.parametrize(("beside", "change"), SETTINGS, ids=show)
def test_every_setting_changes_the_outcome(
    outcome: Callable[..., torch.Tensor], beside: dict[str, Any], change: dict[str, Any]
) -> None:
    assert not torch.equal(outcome(**beside), outcome(**(beside | change)))


PPO_SETTINGS = {field.name for field in fields(PPOConfig)}


def test_no_setting_was_forgotten() -> None:
    """What changes no result has its own test: cuts of a step."""
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
    """Give what comes out of settings, which is the same each time."""
    known: dict[str, torch.Tensor] = {}

    def find(**settings: Any) -> torch.Tensor:
        if str(settings) not in known:
            folder = tmp_path_factory.mktemp("outcome")
            known[str(settings)] = make_outcome(t5, roberta, folder, **settings)
        return known[str(settings)]

    plain = make_outcome(t5, roberta, tmp_path_factory.mktemp("again"))
    assert torch.equal(find(), plain)
    return find


@kinds_and_estimators
def test_the_step_does_not_depend_on_the_cut(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str, estimator: str
) -> None:
    """One step on all rows, on micro-batches of them, and of single rows: the same weights."""

    rate = 100.0 if "soft" in kind else 1.0  # a soft prompt's gradients are small

    def step(microbatch_size: int | None) -> torch.Tensor:
        chosen = ESTIMATORS[estimator]
        ppo = replace(
            chosen.get("ppo", PPO), minibatch_size=18, microbatch_size=microbatch_size, epochs=1,
            max_grad_norm=1e3,
        )  # fmt: skip
        module = settle(make_kind(kind, **(chosen | {"ppo": ppo, "optimizer": sgd(rate)})))
        torch.manual_seed(9)
        before = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
        trainer = make_trainer(tmp_path)
        trainer.fit(module, loader(make_batch(t5)))
        assert trainer.global_step == 1
        after = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
        return after - before

    whole = step(None)
    assert whole.abs().max() > 1e-4
    for size in (1, 4, 5):
        torch.testing.assert_close(step(size), whole, atol=2e-6, rtol=1e-4)


def test_the_epochs_end_when_the_policy_has_moved(t5: str, roberta: str, tmp_path: Path) -> None:
    def epochs(stop_kl: float | None) -> float:
        module = make_policy(t5, roberta, ppo=replace(PPO, stop_kl=stop_kl), optimizer=adamw(0.05))
        trainer = make_trainer(tmp_path)
        trainer.fit(settle(module), loader(make_batch(t5)))
        return logged(trainer)["ppo/policy/epochs"]

    assert epochs(None) == 3
    assert epochs(1e3) == 3
    assert epochs(1e-9) == 1


def test_every_term_of_the_reward_is_logged_and_weighed(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    extra = {
        "words": FunctionReward("tests.ppo.test_policy.count_words", {"factor": 2}, weight=-0.5),
        "hate": ClassifierReward(roberta, "hate", with_dialogue=True, weight=3.0),
    }
    trainer = make_trainer(tmp_path)
    trainer.fit(make_policy(t5, roberta, extra_rewards=extra), loader(make_batch(t5)))
    found = logged(trainer)
    term = {name: found[f"objective/rewards/{name}"] for name in ("reward_model", *extra)}
    assert term["words"] > 0
    expected = term["reward_model"] - 0.5 * term["words"] + 3 * term["hate"]
    assert found["objective/reward"] == pytest.approx(expected, rel=1e-4)


def test_a_term_does_not_take_the_place_of_another(t5: str, roberta: str) -> None:
    extra = {"reward_model": FunctionReward(LETTERS)}
    with pytest.raises(ValueError, match="'reward_model' is the name of"):
        make_policy(t5, roberta, extra_rewards=extra)
    alone = PPOPolicy(t5, None, extra_rewards=extra)
    assert list(alone.terms) == ["reward_model"]
    with pytest.raises(ValueError, match="PPO needs a reward"):
        PPOPolicy(t5, None)


def count_words(
    predictions: list[str], dialogues: list[str], references: list[list[str]], factor: int
) -> list[float]:
    assert len(predictions) == len(dialogues) == len(references)
    return [factor * float(len(text.split())) for text in predictions]


def test_a_nan_score_stops_the_run_with_its_text(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_policy(t5, roberta)
    monkeypatch.setattr(
        ClassifierReward,
        "score",
        lambda self, texts, device: torch.full((len(texts.summaries),), torch.nan),
    )
    with pytest.raises(FloatingPointError, match=r"rows row_0, .* no weight was changed"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "clip": -1.0}, "epochs must be above 0, got 0; clip must be above 0"),
        ({"kl_in_loss": True}, "kl_in_loss needs kl_estimator k2"),
        ({"microbatch_size": 0}, "microbatch_size must be above 0"),
        ({"kl_target": 0.0}, "kl_target must be above 0"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_target changes nothing with kl_coef 0"),
        ({"ratio_guard": 0.5}, "ratio_guard"),
        ({"kl_coef": -0.1}, "kl_coef must be 0 or more"),
        ({"unfinished_penalty": -1.0}, "unfinished_penalty must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_an_adapter_that_does_not_fit_is_refused(
    t5: str, roberta: str, trained_adapter: str, trained_soft_prompt: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        make_policy(t5, roberta, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="was trained on"):
        make_policy("google/flan-t5-base", roberta, adapter=trained_adapter)
    with pytest.raises(ValueError, match="has num_virtual_tokens 5, and"):
        make_policy(t5, roberta, adapter=trained_soft_prompt, policy=SoftPromptPolicy(7))
    with pytest.raises(ValueError, match="is a LORA adapter, not PROMPT_TUNING"):
        make_policy(t5, roberta, adapter=trained_adapter, policy=SoftPromptPolicy(5))
