"""LoRA, DoRA and rsLoRA: their maths, the layers they adapt, and going on from an earlier one."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import train
from lightning_modules import Adapter, FullFT, LoRA, PPOPolicy, PreferenceModule
from lightning_modules.backbones import load_backbone
from lightning_modules.policies.adapters import attach_adapter, find_config_problem, use_adapter
from lightning_modules.policies.kinds import LoRAPolicy, SoftPromptPolicy
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from lightning_modules.summarization import SummarizationModule
from tests.batches import loader, make_batch, make_trainer, settle
from tests.test_modules import ADAPTERS, DECODING, adamw

ROOT = Path(__file__).parent.parent
REWARD = {"letters": FunctionReward("tests.ranks.count_letters")}


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> Any:
    """Move everything that is trained, as training would."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: nn.Module, backbone: str) -> Tensor:
    batch = make_batch(backbone)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}  # type: ignore[literal-required]
    return model.eval()(**inputs).logits


# The maths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_an_update_is_what_the_papers_say(
    use_rslora: bool, scale: float, use_dora: bool, t5: str
) -> None:
    """By hand: the weights W + s B A, and with DoRA each row of them stretched to the length m."""
    settings = LoRASettings(r=4, alpha=8, use_rslora=use_rslora, use_dora=use_dora)
    model = shake(attach_adapter(load_backbone(t5), settings.config()))
    by_hand = load_backbone(t5)
    changed = 0
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert a.shape == (4, 32)
        assert b.shape == (32, 4)
        plain = by_hand.get_submodule(name)
        weight = plain.weight.data + scale * b.data @ a.data
        if use_dora:
            magnitude = module.lora_magnitude_vector["default"].weight.data
            assert magnitude.shape == (32,)
            weight = magnitude[:, None] * weight / weight.square().sum(dim=1, keepdim=True).sqrt()
        plain.weight.data = weight
        changed += 1
    assert changed == 12
    torch.testing.assert_close(logits(model, t5), logits(by_hand, t5), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(by_hand, t5), logits(load_backbone(t5), t5), atol=0.1)


def test_a_fresh_dora_is_the_backbone_with_the_lengths_of_its_rows(t5: str) -> None:
    model = attach_adapter(load_backbone(t5), LoRASettings(r=4, alpha=8, use_dora=True).config())
    torch.testing.assert_close(logits(model, t5), logits(load_backbone(t5), t5))
    layer = model.get_base_model().encoder.block[0].layer[0].SelfAttention.q
    lengths = [sum(float(x) ** 2 for x in row) ** 0.5 for row in layer.base_layer.weight]
    torch.testing.assert_close(
        layer.lora_magnitude_vector["default"].weight.data, torch.tensor(lengths)
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_changes_the_text_and_adapter_off_gives_the_backbones(
    name: str, t5: str, tmp_path: Path
) -> None:
    module = ADAPTERS[name](t5, optimizer=adamw(0.3 if name == "soft_prompt" else 0.01))
    batch = make_batch(t5)
    plain = settle(LoRA(backbone=t5, decoding=DECODING)).eval()
    fresh = plain.generate(batch)
    make_trainer(tmp_path, max_epochs=3).fit(module, loader(batch))
    module.eval()
    trained = module.generate(batch)
    assert trained != fresh
    trained_logits = logits(module.model, t5)
    with use_adapter(module.model, None) as bare:
        assert module.backbone.with_model(bare).generate(batch, DECODING) == fresh
        torch.testing.assert_close(logits(bare, t5), logits(load_backbone(t5), t5))
    assert module.generate(batch) == trained
    torch.testing.assert_close(logits(module.model, t5), trained_logits)


KINDS = {
    "IA3": peft.IA3Config(),
    "VeRA": peft.VeraConfig(r=8),
    "PiSSA": peft.LoraConfig(r=4, init_lora_weights="pissa"),
    "AdaLoRA": peft.AdaLoraConfig(init_r=6, target_r=2, tinit=1, tfinal=1, deltaT=1, total_step=6),
    "P-tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_adapter_trains_and_loads_with_peft_alone(kind: str, t5: str, tmp_path: Path) -> None:
    module = Adapter(t5, KINDS[kind], optimizer=adamw(0.05), decoding=DECODING)
    batch = make_batch(t5)
    make_trainer(tmp_path, max_epochs=6).fit(module, loader(batch))
    assert not torch.allclose(logits(module.model, t5), logits(load_backbone(t5), t5), atol=1e-3)
    module.export(tmp_path / "export")
    # In inference mode PEFT's AdaLoRA fails if labels are passed.
    plain = PeftModel.from_pretrained(
        load_backbone(t5), tmp_path / "export", is_trainable=kind == "AdaLoRA"
    )
    torch.testing.assert_close(logits(plain, t5), logits(module.model, t5), rtol=1e-4, atol=1e-4)
    if kind == "AdaLoRA":
        lost = [m for n, m in module.model.named_parameters() if "lora_E" in n and (m == 0).any()]
        assert lost  # ranks were taken from some layers
        own, _ = module.sum_losses(batch)
        cross_entropy, tokens = SummarizationModule.sum_losses(module, batch)
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "labels")}  # type: ignore[literal-required]
        assert float(own / tokens) == pytest.approx(float(module.model(**inputs).loss), rel=1e-5)
        assert own > cross_entropy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PrefixTuningConfig(num_virtual_tokens=4), "PrefixTuningConfig .* only the decoder"),
        (peft.MultitaskPromptTuningConfig(num_virtual_tokens=4), "no task ids"),
        (peft.IA3Config(target_modules=["query"], feedforward_modules=[]), "names end in .*wi_0"),
    ],
)
def test_an_adapter_that_cannot_be_trained_is_refused(
    config: peft.PeftConfig, message: str, t5: str
) -> None:
    """Both where the module is built, and before anything is loaded."""
    with pytest.raises(ValueError, match=message):
        settle(Adapter(backbone=t5, config=config))
    assert re.search(message, str(find_config_problem(config, t5)))


# The layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (None, 12),  # PEFT's default, q and v: 2 layers with one attention, 2 with two
        (["SelfAttention.q"], 4),
        (r".*decoder.*\.(q|v)$", 8),
        ("all-linear", 36),  # 4 + 3 in an encoder layer, 4 + 4 + 3 in a decoder layer; no head
        (["relative_attention_bias"], 2),
        (["lm_head"], 1),
    ],
)
def test_targets_that_peft_accepts(targets: Any, count: int, t5: str) -> None:
    config = LoRASettings(r=2, alpha=2, target_modules=targets).config()
    model = shake(attach_adapter(load_backbone(t5), config))
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == count
    assert not torch.allclose(logits(model, t5), logits(load_backbone(t5), t5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # PEFT itself ignores `query` because `q` matches.
        ({"target_modules": ["q", "query"]}, r"no layer is named 'query'; .* names end in .*\bq\b"),
        ({"target_modules": r".*decoder\.q$"}, "not found in the base model"),
        ({"target_modules": ".*decoder.*"}, "Target module T5Stack"),
        ({"target_modules": "(q|v"}, "unterminated subpattern"),
        ({"target_modules": []}, "No `target_modules` passed"),
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"lora_dropout": 1.5}, "lora_dropout must be in"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str, t5: str) -> None:
    with pytest.raises(ValueError, match=message):
        settle(LoRA(backbone=t5, **settings))


# A frozen backbone in bf16 ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "dora", "soft_prompt"])
def test_a_frozen_backbone_in_bf16_has_an_adapter_in_fp32(
    name: str, t5: str, tmp_path: Path
) -> None:
    """The loss is that of an fp32 backbone within rounding; the adapter trains and exports."""
    batch, losses = make_batch(t5), []
    for frozen_bf16 in (False, True):
        rate = adamw(0.3 if name == "soft_prompt" else 0.01)
        module = ADAPTERS[name](t5, optimizer=rate, frozen_bf16=frozen_bf16, dropout=0.0)
        trainer = make_trainer(tmp_path, precision="bf16-mixed", max_epochs=3)
        trainer.fit(module, loader(batch))
        losses.append(float(trainer.callback_metrics["train/loss"]))
    trained = {n for n, _ in module.trained_parameters()}
    for n, weight in module.named_parameters():
        assert weight.dtype == (torch.float32 if n in trained else torch.bfloat16), n
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    module.export(tmp_path / "export")
    plain = PeftModel.from_pretrained(load_backbone(t5), tmp_path / "export")
    torch.testing.assert_close(
        logits(plain, t5), logits(module.model.float(), t5), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("policy", [LoRAPolicy(r=4), SoftPromptPolicy(5)], ids=["lora", "prompt"])
def test_ppo_on_a_backbone_in_bf16_passes_the_gate(policy: Any, t5: str, tmp_path: Path) -> None:
    module = PPOPolicy(
        t5, policy=policy, reward_model=None, extra_rewards=REWARD, frozen_bf16=True,
        ppo=PPOConfig(max_new_tokens=8, epochs=2, minibatch_size=4), optimizer=adamw(0.01),
    )  # fmt: skip
    trainer = make_trainer(tmp_path, precision="bf16-mixed", max_epochs=2)
    trainer.fit(module, loader(make_batch(t5)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")  # hashes the reference
    for name, weight in module.model.named_parameters():
        is_adapter = ".default" in name or ".reference" in name
        assert weight.dtype == (torch.float32 if is_adapter else torch.bfloat16), name


@pytest.mark.parametrize(
    ("make", "precision", "message"),
    [
        (LoRA, "32-true", "set trainer.precision to 'bf16-mixed'"),
        (FullFT, "bf16-mixed", "trains weights of the backbone"),
    ],
)
def test_a_backbone_in_bf16_is_refused(
    make: Any, precision: Any, message: str, t5: str, tmp_path: Path
) -> None:
    module = make(backbone=t5, frozen_bf16=True)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, precision=precision).fit(module, loader(make_batch(t5)))


# The command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("[q, v]", ["q", "v"]),
        ('["wi_0"]', ["wi_0"]),
        ("all-linear", "all-linear"),
        (r".*decoder.*\.(q|v)$", r".*decoder.*\.(q|v)$"),
    ],
)
def test_targets_from_the_command_line(
    given: str, parsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "lora.yaml")
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", "--config", config, f"--model.target_modules={given}", "--print_config"])
    assert stop.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert settings["target_modules"] == parsed


def test_targets_are_checked_before_anything_is_loaded(
    t5: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "fit", "--config", str(ROOT / "configs" / "lora.yaml"), "--model.backbone", t5,
        "--model.target_modules", "[q, query]", "--data.source", "nowhere",
        "--run_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "nothing was started, for" in said
    assert "nowhere" in said
    assert "no layer is named 'query'" in said
    assert not (tmp_path / "run").exists()


# Going on from an earlier LoRA ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_lora_goes_on_from_an_export(name: str, t5: str, tmp_path: Path) -> None:
    module = ADAPTERS[name](t5, optimizer=adamw(0.01))
    make_trainer(tmp_path).fit(module, loader(make_batch(t5)))
    export = tmp_path / "export"
    module.export(export)
    again = settle(ADAPTERS[name](t5, adapter=str(export), lora_dropout=0.2))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in module.named_parameters() if p.requires_grad
    }
    assert again.model.training
    assert again.model.peft_config["default"].lora_dropout == 0.2
    rates = {m.p for n, m in again.model.named_modules() if n.endswith("lora_dropout.default")}
    assert rates == {0.2}
    torch.testing.assert_close(logits(again.model, t5), logits(module.model, t5))
    before = {n: p.clone() for n, p in again.named_parameters()}
    again.optimizer = adamw(0.01)
    make_trainer(tmp_path).fit(again, loader(make_batch(t5)))
    for n, p in again.named_parameters():
        assert torch.equal(p, before[n]) != p.requires_grad, n
    again.export(tmp_path / "second")
    assert (tmp_path / "second" / "adapter_model.safetensors").is_file()


def test_a_lora_continues_in_its_own_shape_only(t5: str, tmp_path: Path) -> None:
    settle(LoRA(backbone=t5, r=4, alpha=8)).export(tmp_path)
    wrong: dict[str, Any] = {"r": 4, "alpha": 4, "use_rslora": True, "target_modules": ["q"]}
    for make in (LoRA, partial(PPOPolicy, reward_model=None, extra_rewards=REWARD)):
        own = wrong if make is LoRA else {"policy": LoRAPolicy(**wrong)}
        with pytest.raises(
            ValueError,
            match=r"has lora_alpha 8, target_modules \['q', 'v'\], use_rslora False, and this run "
            r"says lora_alpha 4, target_modules \['q'\], use_rslora True; leave them out",
        ):
            make(backbone=t5, adapter=str(tmp_path), **own)
        settle(make(backbone=t5, adapter=str(tmp_path)))
    with pytest.raises(ValueError, match="is a LORA adapter, not PROMPT_TUNING"):
        PreferenceModule(t5, adapter=str(tmp_path), policy=SoftPromptPolicy())
