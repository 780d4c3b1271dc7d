"""Every method works with decoder-only models: the gate, PPO, PreferenceModule, exports."""

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from datamodules.dpo import ComparisonBatch
from lightning_modules import PPOPolicy, PreferenceModule
from lightning_modules.backbones import (
    Prompts,
    Sampling,
    decoder_only,
    load_backbone,
    record_head,
    set_dropout,
    wrap_model,
)
from lightning_modules.exports import load_exported, merge_export
from lightning_modules.policies import gate
from lightning_modules.policies.adapters import reference_backbone
from lightning_modules.policies.gate import FP32, GateError, check, measure
from lightning_modules.policies.kinds import (
    AdapterPolicy,
    FullPolicy,
    LoRAPolicy,
    SoftPromptPolicy,
)
from lightning_modules.ppo.advantages import GAE, GRPO, RLOO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from tests.backbones.decoders import DECODERS, WITHOUT_CACHE, build, save
from tests.backbones.models import make_prompts
from tests.batches import loader, make_batch, make_trainer, settle
from tests.models import move_lora

FAMILIES = ["llama-tied", "qwen3", "gemma3", "gpt2", "gpt-neox", "opt", "phi"]
LORA = LoRAPolicy(r=4, alpha=8, target_modules="all-linear")
KINDS = {"lora": LORA, "soft prompt": SoftPromptPolicy(4, "random"), "full": FullPolicy()}


def make_policy(name: str, kind: Any = LORA) -> tuple[Any, Any]:
    model, tokenizer = build(name)
    record_head(model)
    policy, reference = kind.attach(model, None)
    for each in (policy, reference):
        if each is not None:
            set_dropout(each.train(), 0.0)
    backbone = wrap_model(policy, tokenizer)
    return backbone, partial(reference_backbone, backbone, reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(DECODERS.keys() - WITHOUT_CACHE))
def test_a_right_policy_passes_the_gate(name: str, kind: str) -> None:
    # Its forward pass fails with a LoRA on all linear layers.
    chosen = LoRAPolicy(r=4) if (name, kind) == ("llama4", "lora") else KINDS[kind]
    if (name, kind) == ("gemma3n", "soft prompt"):  # looks its token ids up in every layer
        with pytest.raises(ValueError, match="treats embedded input"):
            make_policy(name, chosen)
        return
    backbone, opened = make_policy(name, chosen)
    torch.manual_seed(3)
    gate.pass_gate(backbone, opened, Prompts(*make_prompts(0)), Sampling(16), 4, is_exact=True)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(),
        peft.VeraConfig(),
        peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8),
    ],
    ids=["IA3", "VeRA", "P-tuning"],
)
def test_any_adapter_passes_the_gate(config: Any) -> None:
    backbone, opened = make_policy("llama", AdapterPolicy(config))
    torch.manual_seed(3)
    gate.pass_gate(backbone, opened, Prompts(*make_prompts(0)), Sampling(16), 4, is_exact=True)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_first_tokens_are_as_frequent_as_the_softmax_says(name: str) -> None:
    backbone, _ = make_policy(name)
    prompts = Prompts(*make_prompts(0)).rows(torch.tensor([1]))
    torch.manual_seed(4)
    context, draws = backbone.read(prompts).rows(torch.zeros(4000, dtype=torch.int64)), 4000
    drawn = backbone.sample(context, Sampling(1, temperature=0.7)).responses[:, 0]
    expected = draws * backbone.plain_distribution(prompts, drawn[:1, None], 0.7)[0, 0].exp()
    found = torch.bincount(drawn, minlength=len(expected)).float()
    rare = expected < 5
    expected, found = (torch.cat([e[~rare], e[rare].sum()[None]]) for e in (expected, found))
    freedom = len(expected) - 1
    assert ((found - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


# Deliberate faults ------------------------------------------------------------------------------


def ignore_positions(patch: pytest.MonkeyPatch, backbone: Any) -> None:
    """Left padding counts as text, which learned positions show and rotary ones do not."""
    assert backbone.caches_exactly
    patch.setitem(vars(backbone), "_takes_positions", False)


def shift_responses(patch: pytest.MonkeyPatch, backbone: Any) -> None:
    real = decoder_only.DecoderOnly._decode

    def decode(self: Any, prefix: Any, inputs: Any, places: Any) -> Any:
        return real(self, prefix, inputs.roll(1, dims=1), places)

    patch.setattr(decoder_only.DecoderOnly, "_decode", decode)


def leave_dropout(patch: pytest.MonkeyPatch, backbone: Any) -> None:
    backbone.base.transformer.drop.p = 0.1


def move_policy(patch: pytest.MonkeyPatch, backbone: Any) -> None:
    move_lora(backbone.model)


def scale_head(patch: pytest.MonkeyPatch, backbone: Any) -> None:
    """The scorer's head is another one than the model's: tied, or without its scale."""
    real = decoder_only.DecoderOnly._decode

    def decode(self: Any, *given: Any) -> Any:
        logits, hidden = real(self, *given)
        return logits * 0.5, hidden

    patch.setattr(decoder_only.DecoderOnly, "_decode", decode)


@pytest.mark.parametrize(
    ("fault", "figure"),
    [
        (ignore_positions, "plain_gap"),
        (shift_responses, "plain_gap"),
        (scale_head, "plain_gap"),
        (leave_dropout, "log_ratio"),
        (move_policy, "kl"),
    ],
)
def test_a_deliberate_fault_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, fault: Any, figure: str
) -> None:
    backbone, opened = make_policy("gpt2")
    fault(monkeypatch, backbone)
    torch.manual_seed(3)
    with pytest.raises(GateError, match=f"\n- {figure} "):
        check(measure(backbone, opened, Prompts(*make_prompts(0)), Sampling(16)), FP32)


# Training ---------------------------------------------------------------------------------------


def count_letters(predictions: list[str], *_: Any) -> list[float]:
    return [float(len(text)) for text in predictions]


def trained_weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in module.trained_parameters()])


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_of_ppo_train_the_policy(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    module = settle(
        PPOPolicy(
            backbone=folder, reward_model=None, policy=LORA, advantage=GAE(),
            extra_rewards={"length": FunctionReward(f"{__name__}.count_letters")},
            ppo=PPOConfig(max_new_tokens=6, epochs=1, minibatch_size=3),
        )
    )  # fmt: skip
    before = trained_weights(module)
    batch = make_batch(folder)
    make_trainer(tmp_path).fit(module, loader(batch, batch))
    assert module.batches_done == 2
    assert not torch.equal(trained_weights(module), before)


@pytest.mark.parametrize("advantage", [RLOO(), GRPO()], ids=["rloo", "grpo"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_learns_from_groups_of_samples(
    kind: str, advantage: Any, tmp_path: Path
) -> None:
    folder = save("llama", tmp_path / "model")
    module = settle(
        PPOPolicy(
            backbone=folder, reward_model=None, policy=KINDS[kind], advantage=advantage,
            extra_rewards={"length": FunctionReward(f"{__name__}.count_letters")},
            ppo=PPOConfig(samples=3, max_new_tokens=6, epochs=1, minibatch_size=6),
        )
    )  # fmt: skip
    before = trained_weights(module)
    make_trainer(tmp_path).fit(module, loader(make_batch(folder)))
    assert not torch.equal(trained_weights(module), before)


def make_comparisons(folder: str) -> ComparisonBatch:
    batch = make_batch(folder, rows=3)
    torch.manual_seed(6)
    responses = torch.randint(3, 200, (6, 8))
    for row, end in enumerate((7, 3, 1, 5, 0, 6)):
        responses[row, end], responses[row, end + 1 :] = 1, 0
    return ComparisonBatch(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], responses=responses,
        mask=(responses == 1).cumsum(1) - (responses == 1).long() == 0,
        owner=torch.arange(3).repeat_interleave(2), pairs=torch.arange(6).reshape(3, 2),
        weights=torch.ones(3), index=torch.arange(3), ids=batch["ids"],
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_of_dpo_lower_its_loss(name: str, checkpointing: bool, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    module = settle(
        PreferenceModule(
            backbone=folder, policy=LORA, gradient_checkpointing=checkpointing,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        )
    )  # fmt: skip
    batch, losses = make_comparisons(folder), []
    for _ in range(2):
        losses.append(float(module.compute_loss(module.score(batch), batch)))
        if len(losses) == 1:
            make_trainer(tmp_path, max_epochs=2).fit(module, loader(batch))  # type: ignore[arg-type]
    assert losses[1] < losses[0]


# Exports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_exported_loaded_and_merged(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    module = settle(PreferenceModule(backbone=folder, policy=LORA))
    move_lora(module.model)
    module.export(tmp_path / "export")
    batch = make_batch(folder)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = module.model.eval()(**inputs).logits
        loaded, _ = load_exported(tmp_path / "export")
        torch.testing.assert_close(loaded(**inputs).logits, wanted)
        merge_export(tmp_path / "export", tmp_path / "merged")
        merged = load_backbone(str(tmp_path / "merged")).eval()
        torch.testing.assert_close(merged(**inputs).logits, wanted, rtol=1e-4, atol=1e-4)
