"""Loading of exports, and of adapters whose backbone has moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules import DPO, LoRA
from lightning_modules.exports import load_exported
from lightning_modules.policies.kinds import LoRAPolicy, SoftPromptPolicy
from tests.batches import settle
from tests.models import name_backbone
from tests.test_modules import METHODS


@pytest.fixture
def lora_export(t5: str, tmp_path: Path) -> Path:
    module: Any = settle(METHODS["lora"](t5))
    module.export(tmp_path / "lora" / "export")
    return tmp_path / "lora" / "export"


def test_invalid_exports_are_refused(t5: str, lora_export: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        load_exported(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"neither config\.json.*did you mean .*export"):
        load_exported(lora_export.parent)
    with pytest.raises(ValueError, match="has no backbone to replace"):
        load_exported(t5, backbone=t5)
    (lora_export / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_exported(lora_export)


def test_a_backbone_that_moved_can_be_named(t5: str, lora_export: Path, tmp_path: Path) -> None:
    name_backbone(lora_export, Path("/gone/t5"))
    with pytest.raises(ValueError, match=r"no folder '/gone/t5'.*If it has moved"):
        load_exported(lora_export)
    shutil.copytree(t5, tmp_path / "moved")
    model, _ = load_exported(lora_export, backbone=str(tmp_path / "moved"))
    assert "default" in model.peft_config


STARTS: dict[str, Callable[..., Any]] = {
    "LoRA": lambda backbone, adapter: LoRA(backbone, r=4, alpha=8, adapter=adapter),
    "LoRAPolicy": lambda backbone, adapter: DPO(backbone, adapter, LoRAPolicy(r=4, alpha=8)),
    "SoftPromptPolicy": lambda backbone, adapter: DPO(backbone, adapter, SoftPromptPolicy(5)),
}


@pytest.mark.parametrize("start", STARTS)
def test_adapter_continues_on_a_backbone_that_has_moved(
    start: str, t5: str, trained_adapter: str, trained_soft_prompt: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    old, new, export = tmp_path / "old", tmp_path / "new", tmp_path / "export"
    shutil.copytree(t5, new)
    shutil.copytree(trained_soft_prompt if "Soft" in start else trained_adapter, export)
    name_backbone(export, old)
    old.mkdir()  # it is another model as long as it is there
    with pytest.raises(ValueError, match=r"was trained on .*old.* write that place as base_model"):
        STARTS[start](str(new), str(export))
    old.rmdir()
    module = STARTS[start](str(new), str(export))
    module.configure_model()
    assert f"was trained on {old}; assuming that {new} is the same model" in caplog.text
    module.export(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again["base_model_name_or_path"] == str(new)
    caplog.clear()
    load_exported(tmp_path / "again")
    assert "assuming that" not in caplog.text


def test_an_adapter_that_does_not_fit_is_refused(lora_export: Path) -> None:
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_exported(lora_export, backbone="mini")
