"""PPOPolicy of every kind on tiny models: step 0, learning, exports, and what tests generate."""

from collections.abc import Callable
from dataclasses import replace
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
from lightning_modules.policies.kinds import SoftPromptPolicy
from lightning_modules.ppo import losses
from lightning_modules.ppo import rollout as rollout_module
from lightning_modules.ppo import update as update_module
from lightning_modules.ppo.advantages import GRPO, RLOO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer, settle
from tests.ppo.kinds import KINDS, PPO, adamw, make_policy, sgd

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
    folders = {"lora": trained_adapter, "soft": trained_soft_prompt, None: None}

    def make(kind: str, **settings: Any) -> PPOPolicy:
        policy, adapter = KINDS[kind]
        own = {"policy": policy, "adapter": folders[adapter]}
        return make_policy(t5, roberta, **(own | settings))

    return make


def vector(module: PPOPolicy) -> torch.Tensor:
    """All trained weights as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


@every_kind
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learning_rate_zero_keeps_ratio_and_kl_at_their_start(
    make_kind: Callable[..., PPOPolicy],
    t5: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: str,
) -> None:
    seen: list[float] = []

    def spy(logprobs: Any, old: Any, advantages: Any, mask: Any, *more: Any) -> Any:
        seen.append(float((logprobs - old).abs()[mask].max()))
        return losses.policy_loss(logprobs, old, advantages, mask, *more)

    monkeypatch.setattr(update_module, "policy_loss", spy)
    trainer, batch = make_trainer(tmp_path, precision=precision), make_batch(t5)
    trainer.fit(make_kind(kind, optimizer=sgd(0.0)), loader(batch, batch))
    assert len(seen) == 2 * 3 * 2  # batches, epochs, minibatches of 6 rows by 4
    # In bf16 passes of other shapes round differently; the gate's bound is 0.2.
    assert max(seen) < (1e-5 if precision == "32-true" else 0.2)
    if precision == "32-true":
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert abs(found["objective/kl"]) < 1e-4
        assert found["ppo/policy/ratio"] == pytest.approx(1, abs=1e-4)
        assert found["ppo/policy/approxkl"] < 1e-8
        assert found["ppo/policy/clipfrac"] == 0


@pytest.mark.parametrize(
    ("precision", "passes"),
    [
        ("32-true", 1),  # the reference's
        ("bf16-mixed", 2),  # and the policy's over what it has drawn
    ],
)
def test_log_probabilities_of_the_sampler_are_reused_in_fp32_only(
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
    module = settle(make_policy(t5, roberta))
    module.gate_passed = True
    make_trainer(tmp_path, precision=precision).fit(module, loader(make_batch(t5)))
    assert len(made) == passes


@every_kind
def test_every_kind_learns_keeps_its_reference_and_exports_the_policy(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    module = settle(make_kind(kind, optimizer=adamw(0.05)))
    batch = make_batch(t5)
    prompts = Prompts(batch["input_ids"], batch["attention_mask"])

    @torch.no_grad()
    def read(backbone: Backbone) -> torch.Tensor:
        tokens = torch.arange(30).reshape(6, 5) + 40
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return backbone.score(backbone.read(prompts), tokens, mask).logprobs

    before = read(module.backbone)
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    if not kind.startswith("full"):
        assert all(".default." in n or n.startswith("value_head") for n in trained)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(batch, batch))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, weights[n])}
    assert moved <= trained if kind.startswith("full") else moved == trained
    assert (read(module.backbone) - before).abs().max() > 0.01
    assert float(trainer.callback_metrics["objective/kl"]) != 0
    with module.open_reference() as reference:
        torch.testing.assert_close(read(reference), before, atol=1e-5, rtol=0)

    module.export(tmp_path / "export")
    plain: Any
    if (tmp_path / "export" / "adapter_config.json").exists():
        assert not (tmp_path / "export" / "reference").exists()
        backbone = AutoModelForSeq2SeqLM.from_pretrained(t5)
        plain = PeftModel.from_pretrained(backbone, tmp_path / "export")
    else:
        plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    assert isinstance(plain, PeftModel) == ("LoRA" in kind or "soft" in kind)
    module.eval()
    texts = module.generate(batch)
    assert module.backbone.with_model(plain.eval()).generate(batch, module.decoding) == texts
    with module.open_reference() as reference:
        assert reference.generate(batch, module.decoding) != texts


@pytest.mark.parametrize("kind", ["decoder LoRA", "trained LoRA in the decoder", "full decoder"])
def test_a_frozen_encoder_runs_once_for_all_roles_and_epochs(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    passes: list[int] = []
    module = settle(make_kind(kind))
    module.gate_passed = True  # it has passes of its own
    assert module.backbone.pad_is_token  # reads a prompt of its own, once
    first = module.model.get_encoder().block[0]
    first.register_forward_hook(lambda *_: passes.append(1))
    make_trainer(tmp_path).fit(module, loader(make_batch(t5)))
    assert len(passes) == 1


def test_policy_and_reference_share_whatever_is_frozen(
    make_kind: Callable[..., PPOPolicy], t5: str
) -> None:
    whole = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_pretrained(t5).parameters())
    full, decoder, lora = (
        settle(make_kind(kind)) for kind in ("full", "full decoder", "trained LoRA")
    )
    assert full.count_parameters() == (whole + 33, 2 * whole + 33)
    trained, total = decoder.count_parameters()
    assert total - trained == whole
    assert trained < whole
    trained, total = lora.count_parameters()
    assert total == whole + 2 * (trained - 33) + 33


def test_a_reference_that_is_not_the_start_stops_the_run(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original notebook's fault: adapter trained, reference the bare backbone."""
    monkeypatch.setattr(kinds_module, "copy_as_reference", lambda model: None)
    module = make_policy(t5, roberta, adapter=trained_adapter)
    with pytest.raises(GateError, match="reference is not the policy"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


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
        before, trainer = vector(module), make_trainer(tmp_path)
        trainer.fit(module, loader(make_batch(t5)))
        assert trainer.global_step == 1
        return vector(module) - before

    whole = step(None)
    assert whole.abs().max() > 1e-4
    for size in (1, 5):
        torch.testing.assert_close(step(size), whole, atol=2e-6, rtol=1e-4)


# Checkpoints and tests --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fresh LoRA", "fresh soft prompt"])
def test_a_checkpoint_has_trained_weights_reference_and_loop_only(
    make_kind: Callable[..., PPOPolicy], t5: str, tmp_path: Path, kind: str
) -> None:
    """A new soft prompt's reference was drawn at random, and a test has another seed."""
    path, batch = tmp_path / "state.ckpt", make_batch(t5)
    ppo = PPOConfig(max_new_tokens=8, kl_target=1.0, kl_horizon=10, normalize_scores=True)
    module, again = (make_kind(kind, ppo=ppo, optimizer=adamw(0.5)) for _ in range(2))
    torch.manual_seed(1)
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(module, loader(batch, batch))
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert all(".default." in n or n.startswith("value_head") for n in checkpoint["state_dict"])
    assert checkpoint["ppo"]["kl_coef"] == module.kl_coef.beta != 0.05
    torch.manual_seed(2)
    make_trainer(tmp_path).test(again, loader(batch), ckpt_path=path, weights_only=True)
    assert again.loop_state() == module.loop_state()
    assert again.fingerprint == module.fingerprint
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


SAMPLED = Decoding(max_new_tokens=10, do_sample=True)


def sample_in_test(module: PPOPolicy, folder: Path, seed: int, **where: Any) -> list[list[str]]:
    """Test on the same batch twice; return the texts of before and of after of both batches."""
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
def test_policy_and_reference_sample_the_same_texts_at_the_start(
    make_kind: Callable[..., PPOPolicy], tmp_path: Path, kind: str
) -> None:
    before, after = sample_in_test(settle(make_kind(kind, decoding=SAMPLED)), tmp_path, 5)
    assert before == after
    assert after[:6] != after[6:]  # the second batch, of the same rows, has its own numbers


def test_a_test_samples_by_the_seed_of_its_command(t5: str, roberta: str, tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    torch.manual_seed(1)
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(make_policy(t5, roberta, optimizer=adamw(0.1)), loader(make_batch(t5)))
    trainer.save_checkpoint(path)

    def test(seed: int, decoding: Decoding = SAMPLED) -> list[list[str]]:
        module = make_policy(t5, roberta, decoding=decoding)
        return sample_in_test(module, tmp_path, seed, ckpt_path=path, weights_only=True)

    first = test(5)
    assert first[0] != first[1]
    assert test(5) == first
    assert test(6) != first
    # Greedy texts of before are those of the bare backbone.
    bare = settle(make_policy(t5, roberta)).eval()
    assert test(5, bare.decoding)[0][:6] == bare.generate(make_batch(t5))


def test_an_adapter_that_does_not_fit_is_refused(
    t5: str, roberta: str, trained_adapter: str, trained_soft_prompt: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        make_policy(t5, roberta, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="was trained on"):
        make_policy("google/flan-t5-base", roberta, adapter=trained_adapter)
    with pytest.raises(ValueError, match="has num_virtual_tokens 5, and"):
        make_policy(t5, roberta, adapter=trained_soft_prompt, policy=SoftPromptPolicy(7))
