"""PPOPolicy end to end on tiny models: what holds at step 0, after it, and in what it leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from lightning_modules import LoRA, PPOPolicy
from lightning_modules.adapters import reference_policy
from lightning_modules.ppo import losses
from lightning_modules.ppo import policy as policy_module
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.invariants import GateError
from lightning_modules.ppo.policy import LoRAShape
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer, settle

DECODING = Decoding(max_new_tokens=10)
PPO = PPOConfig(max_new_tokens=10, minibatch_size=4, epochs=3)


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


@pytest.fixture(scope="module")
def trained_adapter(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a LoRA that no longer is the bare backbone."""
    folder = tmp_path_factory.mktemp("lora")
    module = LoRA(backbone=t5, r=4, alpha=8, decoding=DECODING, optimizer=adamw(0.05))
    make_trainer(folder, max_epochs=3).fit(module, loader(make_batch(t5)))
    module.export(folder / "export")
    return str(folder / "export")


def make_policy(t5: str, roberta: str, **settings: Any) -> PPOPolicy:
    defaults: dict[str, Any] = {
        "lora": LoRAShape(r=4, alpha=8),
        "ppo": PPO,
        "decoding": DECODING,
        "optimizer": adamw(0.01),
    }
    return PPOPolicy(backbone=t5, reward_model=roberta, **(defaults | settings))


def logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_step_zero(t5: str, roberta: str, trained_adapter: str, tmp_path: Path, start: str) -> None:
    adapter = trained_adapter if start == "trained" else None
    module = make_policy(t5, roberta, adapter=adapter, optimizer=sgd(0.0))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(make_batch(t5)))
    found = logged(trainer)
    assert abs(found["objective/kl"]) < 1e-4
    assert found["ppo/policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["ppo/policy/approxkl"] < 1e-8
    assert found["ppo/policy/clipfrac"] == 0


@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_learning_rate_zero_keeps_every_log_ratio_at_zero(
    t5: str,
    roberta: str,
    trained_adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
) -> None:
    seen: list[float] = []

    def spy(logprobs: Any, old: Any, advantages: Any, mask: Any, clip: float) -> Any:
        seen.append(float((logprobs - old).abs()[mask].max()))
        return losses.policy_loss(logprobs, old, advantages, mask, clip)

    monkeypatch.setattr(policy_module, "policy_loss", spy)
    adapter = trained_adapter if start == "trained" else None
    module = make_policy(t5, roberta, adapter=adapter, optimizer=sgd(0.0))
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    assert len(seen) == 2 * 3 * 2  # batches, epochs, minibatches of 6 rows by 4
    assert max(seen) < 1e-5


def test_a_reference_that_is_not_the_start_stops_the_run(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original notebook's fault: adapter trained, reference the bare backbone."""
    attach = policy_module.attach_trained_lora

    def without_reference(backbone: Any, path: str) -> Any:
        model = attach(backbone, path)
        model.delete_adapter("reference")
        return model

    monkeypatch.setattr(policy_module, "attach_trained_lora", without_reference)
    module = make_policy(t5, roberta, adapter=trained_adapter)
    with pytest.raises(GateError, match="KL to the reference"):
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
        with reference_policy(module.model):
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


def test_export_is_the_policy_alone(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path
) -> None:
    module = make_policy(t5, roberta, adapter=trained_adapter)
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    module.export(tmp_path / "export")
    assert not (tmp_path / "export" / "reference").exists()
    weights = load_file(tmp_path / "export" / "adapter_model.safetensors")
    assert all("lora" in name for name in weights)
    backbone = AutoModelForSeq2SeqLM.from_pretrained(t5)
    plain = PeftModel.from_pretrained(backbone, tmp_path / "export").eval()
    module.eval()
    tokens = plain.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=10
    )
    assert module.decode(tokens) == module.generate(batch)


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


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"kl_coef": 5.0},
        {"epochs": 1},
        {"minibatch_size": 2},
        {"gamma": 0.5},
        {"lam": 0.1},
        {"clip": 1e-5},
        {"value_clip": 1e-5},
        {"value_weight": 5.0},
        {"whiten_rewards": True},
        {"unfinished_penalty": 3.0},
        {"max_grad_norm": 1e-4},
        {"ratio_guard": 1.0000001},
        {"max_new_tokens": 5},
        {"kl_target": 0.1, "kl_horizon": 10.0},
        {"module": {"value_lr": 0.5}},
        {"module": {"reward_label": "hate"}},
        {"module": {"schedule": "linear"}},
        {"module": {"warmup_fraction": 0.5}},
        {"module": {"lora": LoRAShape(r=4, alpha=16)}},
    ],
    ids=lambda change: str(next(iter(change.get("module", change)))),
)
def test_every_setting_changes_the_outcome(
    t5: str, roberta: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    def outcome(module: dict[str, Any] | None = None, **settings: Any) -> torch.Tensor:
        torch.manual_seed(7)
        batch = make_batch(t5)
        ppo = PPOConfig(**({"max_new_tokens": 10, "minibatch_size": 4, "epochs": 2} | settings))
        arguments = {"ppo": ppo, "optimizer": adamw(0.02)} | (module or {})
        module = settle(make_policy(t5, roberta, **arguments))
        torch.manual_seed(8)
        make_trainer(tmp_path).fit(module, loader(batch, batch))
        weights = [p.detach().flatten() for p in module.parameters() if p.requires_grad]
        return torch.cat(weights)

    plain = outcome()
    assert torch.equal(plain, outcome())
    assert not torch.equal(plain, outcome(**change))


def test_loss_does_not_depend_on_the_cut(t5: str, roberta: str, tmp_path: Path) -> None:
    """One SGD step on 6 rows is the token-weighted mean of the steps on its parts."""

    def gradient(module: Any, rows: list[int]) -> tuple[torch.Tensor, int]:
        part = rollout.rows(torch.tensor(rows))
        new = policy_module.score_tokens(
            module.model, part.prompts, part.responses, 1.0, module.value_head
        )
        loss = losses.policy_loss(new.logprobs, part.logprobs, advantages[rows], part.mask).loss
        module.zero_grad()
        (loss / int(part.mask.sum())).backward()
        flat = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
        return torch.cat(flat), int(part.mask.sum())

    module = settle(make_policy(t5, roberta))
    batch = make_batch(t5)
    torch.manual_seed(9)
    prompts = policy_module.Prompts(batch["input_ids"], batch["attention_mask"])
    rollout, _ = policy_module.roll_out(module.model, module.value_head, prompts, module.sampling)
    advantages = torch.randn(rollout.mask.shape)
    whole, tokens = gradient(module, [0, 1, 2, 3, 4, 5])
    parts = [gradient(module, rows) for rows in ([0], [1, 2], [3, 4, 5])]
    assert sum(n for _, n in parts) == tokens
    mean = sum(g * n for g, n in parts) / tokens
    torch.testing.assert_close(mean, whole, atol=1e-6, rtol=1e-5)


def test_a_nan_score_stops_the_run_with_its_text(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_policy(t5, roberta)
    monkeypatch.setattr(
        policy_module.RewardScorer,
        "logits",
        lambda self, texts: torch.full((len(texts),), torch.nan),
    )
    with pytest.raises(FloatingPointError, match="summary of row_0"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "clip": -1.0}, "epochs must be above 0, got 0; clip must be above 0"),
        ({"gamma": 1.5}, "gamma must be in"),
        ({"kl_target": 0.0}, "kl_target"),
        ({"ratio_guard": 0.5}, "ratio_guard"),
        ({"kl_coef": -0.1}, "kl_coef must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_an_adapter_that_does_not_fit_is_refused(
    t5: str, roberta: str, trained_adapter: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        make_policy(t5, roberta, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="was trained on"):
        make_policy("google/flan-t5-base", roberta, adapter=trained_adapter)
