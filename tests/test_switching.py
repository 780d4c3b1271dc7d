"""Several adapters on one backbone, switching between them, and merging one into the weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from alignsum.commands import merge
from lightning_modules import LoRA, SoftPrompt
from lightning_modules.backbones import head_is_tied, load_backbone
from lightning_modules.exports import load_exported, merge_export
from lightning_modules.policies.adapters import load_adapters, merge_adapter, use_adapter
from tests.batches import make_batch, settle
from tests.models import save_tied_t5
from tests.test_adapters import logits, shake
from tests.test_modules import DECODING

KINDS: dict[str, Callable[..., Any]] = {
    "lora": lambda t5: LoRA(backbone=t5, r=2, alpha=2),
    "dora": lambda t5: LoRA(backbone=t5, r=4, alpha=2, use_dora=True, target_modules=["k", "wo"]),
    "rslora": lambda t5: LoRA(
        backbone=t5, r=4, alpha=1, use_rslora=True, target_modules="all-linear"
    ),
    "head": lambda t5: LoRA(backbone=t5, r=2, alpha=4, target_modules=["lm_head", "q"]),
    "bias": lambda t5: LoRA(backbone=t5, r=2, alpha=4, target_modules=["relative_attention_bias"]),
    "short": lambda t5: SoftPrompt(backbone=t5, virtual_tokens=3),
    "long": lambda t5: SoftPrompt(backbone=t5, virtual_tokens=9, init="random"),
}
LORAS, PROMPTS = ["lora", "dora", "rslora", "head", "bias"], ["short", "long"]


@pytest.fixture(scope="module")
def exports(t5: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    for seed, (name, make) in enumerate(KINDS.items()):
        module = settle(make(t5))
        shake(module.model, seed)
        module.export(folder / name)
    return {name: folder / name for name in KINDS}


def tokens(model: Any, t5: str) -> list[list[int]]:
    batch = make_batch(t5)
    return model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **DECODING.arguments()
    ).tolist()


@pytest.mark.parametrize("names", [LORAS, PROMPTS], ids=["loras", "prompts"])
def test_each_adapter_computes_what_it_does_alone(
    names: list[str], t5: str, exports: dict[str, Path]
) -> None:
    model = load_adapters(load_backbone(t5), {name: exports[name] for name in names})
    assert not any(p.requires_grad for p in model.parameters())
    texts = [tokens(load_backbone(t5), t5)]
    with use_adapter(model, None) as active:
        assert tokens(active, t5) == texts[0]
        torch.testing.assert_close(logits(active, t5), logits(load_backbone(t5), t5))
    # Twice, for switching must leave nothing behind.
    for name in [*names, *names]:
        alone, _ = load_exported(exports[name])
        with use_adapter(model, name) as active:
            assert tokens(active, t5) == tokens(alone, t5), name
            torch.testing.assert_close(logits(active, t5), logits(alone, t5), msg=name)
        texts.append(tokens(alone, t5))
    # Each of them says something of its own.
    assert len({str(text) for text in texts}) == 1 + len(names)
    # The first is the one that is active.
    assert tokens(model, t5) == texts[1]


@pytest.mark.parametrize("kinds", [LORAS[:2], PROMPTS], ids=["loras", "prompts"])
@pytest.mark.parametrize("names", [("a", "b"), ("b", "bb"), ("lora", "prompt")])
def test_any_name_will_do(
    names: tuple[str, str], kinds: list[str], t5: str, exports: dict[str, Path]
) -> None:
    """PEFT looks for names as parts of the names of weights."""
    folders = {name: exports[kind] for name, kind in zip(names, kinds, strict=True)}
    model = load_adapters(load_backbone(t5), folders)
    for name, folder in folders.items():
        with use_adapter(model, name):
            assert tokens(model, t5) == tokens(load_exported(folder)[0], t5)


@pytest.mark.parametrize("names", [LORAS[:2], PROMPTS], ids=["loras", "prompts"])
def test_switches_may_be_nested(names: list[str], t5: str, exports: dict[str, Path]) -> None:
    model = load_adapters(load_backbone(t5), {name: exports[name] for name in names})
    first, second = (tokens(load_exported(exports[name])[0], t5) for name in names)
    off = tokens(load_backbone(t5), t5)
    with use_adapter(model, None) as outer:
        with use_adapter(model, names[1]) as middle:
            assert tokens(middle, t5) == second
            with use_adapter(model, None) as inner:
                assert tokens(inner, t5) == off
            assert tokens(middle, t5) == second
        assert tokens(outer, t5) == off
        with pytest.raises(KeyError), use_adapter(model, names[0]) as middle:
            assert tokens(middle, t5) == first
            raise KeyError
        assert tokens(outer, t5) == off
    assert tokens(model, t5) == first


@pytest.mark.parametrize("kind", ["lora", "dora", "short"])
def test_after_a_switch_the_same_weights_are_trained(kind: str, t5: str) -> None:
    module = settle(KINDS[kind](t5))
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained
    for name in (None, "default"):
        with use_adapter(module.model, name):
            pass
        assert {n for n, p in module.named_parameters() if p.requires_grad} == trained
    assert module.model.training


def test_adapters_that_were_active_together_are_so_again(t5: str, exports: dict[str, Path]) -> None:
    model = load_adapters(load_backbone(t5), {name: exports[name] for name in LORAS[:2]})
    model.base_model.set_adapter(LORAS[:2])
    both = logits(model, t5)
    with use_adapter(model, "lora"):
        assert not torch.allclose(logits(model, t5), both)
    torch.testing.assert_close(logits(model, t5), both)


@pytest.mark.parametrize("change", ["missing", "more"])
def test_an_adapter_with_other_weights_is_refused(
    change: str, t5: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(exports["lora"], tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    name = next(iter(weights))
    if change == "missing":
        weights.pop(name)
    else:
        # As of a deeper model: PEFT would pass over it.
        weights[name.replace("block.0", "block.7")] = weights[name].clone()
    save_file(weights, broken / "adapter_model.safetensors")
    for folders in ({"a": broken}, {"whole": exports["dora"], "a": broken}):
        with pytest.raises(ValueError, match=r"broken does not fit the backbone: 1 weights differ"):
            load_adapters(load_backbone(t5), folders)


def test_what_cannot_share_a_backbone_is_said(t5: str, exports: dict[str, Path]) -> None:
    backbone = load_backbone(t5)
    with pytest.raises(ValueError, match=r"all of one kind; got .*LORA.*PROMPT_TUNING"):
        load_adapters(backbone, {name: exports[name] for name in ("lora", "short")})
    with pytest.raises(ValueError, match="no exported adapter"):
        load_adapters(backbone, {"a": exports["lora"], "b": exports["lora"].parent})
    with pytest.raises(ValueError, match="one adapter or more"):
        load_adapters(backbone, {})
    with pytest.raises(ValueError, match=r"names \['v1.2', 'q', ''\].*choose others"):
        load_adapters(backbone, {name: exports["lora"] for name in ("v1.2", "q", "")})
    model = load_adapters(backbone, {"lora": exports["lora"]})
    with (
        pytest.raises(ValueError, match="no adapter 'lota'; there are lora"),
        use_adapter(model, "lota"),
    ):
        pass


# Merging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LORAS)
def test_a_merged_export_is_a_plain_model_with_the_same_output(
    kind: str, t5: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "merged"
    difference = merge_export(exports[kind], out)
    with_adapter, _ = load_exported(exports[kind])
    plain = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    assert not isinstance(plain, PeftModel)
    assert not head_is_tied(plain)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert float((logits(plain, t5) - logits(with_adapter, t5)).abs().max()) < 2e-5
    assert 0 <= difference < 2e-5
    assert tokens(plain, t5) == tokens(with_adapter, t5) != tokens(load_backbone(t5), t5)
    text = "#Person1#: Hello."
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(t5)(text)
    # Our own loading agrees.
    torch.testing.assert_close(logits(load_exported(out)[0], t5), logits(plain, t5))


def test_merging_into_a_tied_head_keeps_it_tied(tmp_path: Path) -> None:
    module = LoRA(backbone=save_tied_t5(tmp_path / "base"), r=2, alpha=2)
    model = shake(module.attach(module.load_backbone()))
    inputs = {"input_ids": torch.arange(1, 7)[None], "labels": torch.arange(3, 8)[None]}
    expected = model.eval()(**inputs).logits
    merged = merge_adapter(model)
    assert head_is_tied(merged)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    assert head_is_tied(plain)
    torch.testing.assert_close(plain(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_one_of_several_is_merged_by_name(t5: str, exports: dict[str, Path]) -> None:
    model = load_adapters(load_backbone(t5), {name: exports[name] for name in LORAS})
    with pytest.raises(ValueError, match="no adapter 'x'"):
        merge_adapter(model, "x")
    expected = logits(load_exported(exports["dora"])[0], t5)
    torch.testing.assert_close(
        logits(merge_adapter(model, "dora"), t5), expected, atol=1e-5, rtol=1e-5
    )


def test_the_command_merges_and_overwrites_nothing(
    t5: str, exports: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "merged"
    command = [str(exports["lora"]), "--out", str(out)]
    assert merge.main(command) == 0
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert "model.safetensors" in files
    assert merge.main(command) == 2
    assert "already exists" in caplog.text
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    assert merge.main([str(exports["short"]), "--out", str(tmp_path / "other")]) == 2
    assert "only a LORA updates weights and can be merged" in caplog.text
    assert merge.main([str(out), "--out", str(tmp_path / "other")]) == 2
    assert "is a full model; only a LORA" in caplog.text
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="cannot be merged into weights"):
        merge_adapter(load_exported(exports["short"])[0])


def test_a_merge_that_computes_something_else_writes_nothing(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: PeftModel) -> Any:
        return shake(merge_adapter(model).requires_grad_(True))

    monkeypatch.setattr("lightning_modules.exports.merge_adapter", wrong)
    with pytest.raises(ValueError, match=r"would change its outputs by .*nothing was written"):
        merge_export(exports["lora"], tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
