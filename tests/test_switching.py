"""Policy and reference on one backbone, switching between them, and merging an adapter."""

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
from lightning_modules.policies.adapters import (
    copy_as_reference,
    load_adapter,
    merge_adapter,
    use_adapter,
)
from tests.batches import make_batch, settle
from tests.models import save_tied_t5
from tests.test_adapters import logits, shake
from tests.test_modules import DECODING

KINDS: dict[str, Callable[..., Any]] = {
    "lora": lambda t5: LoRA(backbone=t5, r=2, alpha=2),
    "dora": lambda t5: LoRA(backbone=t5, r=4, alpha=2, use_dora=True, target_modules=["k", "wo"]),
    "all": lambda t5: LoRA(backbone=t5, r=4, alpha=1, use_rslora=True, target_modules="all-linear"),
    "head": lambda t5: LoRA(backbone=t5, r=2, alpha=4, target_modules=["lm_head", "q"]),
    "bias": lambda t5: LoRA(backbone=t5, r=2, alpha=4, target_modules=["relative_attention_bias"]),
    "prompt": lambda t5: SoftPrompt(backbone=t5, virtual_tokens=9, init="random"),
}


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


def with_reference(kind: str, t5: str, exports: dict[str, Path]) -> Any:
    """A policy that started from an export, is its frozen copy as well, and has moved since."""
    model = load_adapter(load_backbone(t5), exports[kind], trainable=True)
    copy_as_reference(model)
    return shake(model, seed=9).eval()


@pytest.mark.parametrize("kind", ["lora", "dora", "all", "prompt"])
def test_policy_reference_and_backbone_compute_what_they_do_alone(
    kind: str, t5: str, exports: dict[str, Path]
) -> None:
    model = with_reference(kind, t5, exports)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("default" in name for name in trained)
    policy, start = tokens(model, t5), load_exported(exports[kind])[0]
    off = tokens(load_backbone(t5), t5)
    assert len({str(each) for each in (policy, tokens(start, t5), off)}) == 3
    with use_adapter(model, "reference") as reference:
        assert tokens(reference, t5) == tokens(start, t5)
        torch.testing.assert_close(logits(reference, t5), logits(start, t5))
        with use_adapter(model, None) as bare:  # blocks may be nested
            assert tokens(bare, t5) == off
            torch.testing.assert_close(logits(bare, t5), logits(load_backbone(t5), t5))
            with pytest.raises(KeyError), use_adapter(model, "default") as inner:
                assert tokens(inner, t5) == policy
                raise KeyError
            assert tokens(bare, t5) == off
        assert tokens(reference, t5) == tokens(start, t5)
    assert tokens(model, t5) == policy
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


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
    with pytest.raises(ValueError, match=r"broken does not fit the backbone: 1 weights differ"):
        load_adapter(load_backbone(t5), broken)


# Merging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prompt"])
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
    assert merge.main([str(exports["prompt"]), "--out", str(tmp_path / "other")]) == 2
    assert "only a LORA updates weights and can be merged" in caplog.text
    assert merge.main([str(out), "--out", str(tmp_path / "other")]) == 2
    assert "is a full model; only a LORA" in caplog.text
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="cannot be merged into weights"):
        merge_adapter(load_exported(exports["prompt"])[0])


def test_a_merge_that_computes_something_else_writes_nothing(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: PeftModel) -> Any:
        return shake(merge_adapter(model).requires_grad_(True))

    monkeypatch.setattr("lightning_modules.exports.merge_adapter", wrong)
    with pytest.raises(ValueError, match=r"would change its outputs by .*nothing was written"):
        merge_export(exports["lora"], tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
