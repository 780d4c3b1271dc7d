"""Loading of exports, and of adapters whose backbone has moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callbacks.model_card import write_card
from common import hub
from common.run_folder import RunFolder
from lightning_modules import LoRA, PreferenceModule
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
    "LoRAPolicy": lambda backbone, adapter: PreferenceModule(
        backbone, adapter, LoRAPolicy(r=4, alpha=8)
    ),
    "SoftPromptPolicy": lambda backbone, adapter: PreferenceModule(
        backbone, adapter, SoftPromptPolicy(5)
    ),
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
    with pytest.raises(ValueError, match=r"was trained on .*old.* set base_model_name_or_path in"):
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


def test_the_miniature_is_found_again_when_its_checkout_has_moved(tmp_path: Path) -> None:
    mini = hub.resolve_model("mini")
    assert hub.find_again("/gone/assets/mini/t5") == mini
    assert hub.find_again("/gone/mine/t5") == "/gone/mine/t5"
    other = tmp_path / "assets" / "mini" / "t5"
    other.mkdir(parents=True)
    assert hub.find_again(str(other)) == str(other)  # of another checkout, and still there


@pytest.mark.parametrize("backbone", ["mini", "google/flan-t5-base"])
def test_the_card_of_an_adapter_names_a_hub_id_or_says_where_its_backbone_is(
    backbone: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.export.mkdir()
    (folder.export / "adapter_config.json").write_text('{"task_type": "SEQ_2_SEQ_LM"}')
    folder.config.write_text("data: {init_args: {source: mini, prompt: {class_path: Plain}}}")
    folder.update_summary(method="lora", backbone=backbone)
    folder.record_metrics({"val/rouge1": (0.4, 50, 0.3, 0.5)})
    write_card(folder)
    card = (folder.export / "README.md").read_text()
    assert (f"base_model: {backbone}" in card) == (backbone != "mini")
    assert ("If it has moved" in card) == (backbone == "mini")
    assert 'source `"mini"`, prompt `{"class_path": "Plain"}`' in card
    assert "Last validation" in card
    assert "| ROUGE-1 | 40.0 | 30.0 to 50.0 | 50 |" in card
    folder.record_metrics({"test/rouge1": (0.6, 50, 0.5, 0.7)})
    write_card(folder)
    card = (folder.export / "README.md").read_text()
    assert "Test (x 100)" in card
    assert "| ROUGE-1 | 60.0 | 50.0 to 70.0 | 50 |" in card
