"""The presets of configs/data: options that parse, and columns that load."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from common.run_folder import RunFolder
from datamodules.reading import ColumnNames
from datamodules.splits import DialogueReader

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "configs" / "data").glob("*.yaml"))
SAMSUM = Path(os.environ.get("SAMSUM_DIR", ROOT.parent / "shared" / "data" / "samsum"))

HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "dialogsum": [
        {"id": f"test_0_{k}", "dialogue": "#Person1#: Tea?", "summary": f"Tea {k}.", "topic": "tea"}
        for k in (1, 2, 3)
    ],
    "samsum": [{"id": "13", "dialogue": "Ann: Tea?\r\nBo: Yes", "summary": "They have tea."}],
    "xsum": [{"id": "7", "document": "Tea was had.", "summary": "Tea."},
             {"id": "8", "document": "", "summary": "Nothing."}],
    "cnn_dailymail": [{"id": "0a", "article": "(CNN) -- Tea.", "highlights": "Tea .\nMore tea ."}],
}  # fmt: skip
"""Rows with the columns of the hub's copies."""


def parse(capsys: Any, config: str, preset: Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", "-c", f"configs/{config}.yaml", "-c", str(preset), "--print_config"])
    assert stop.value.code == 0
    parsed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return parsed


def test_every_preset_has_rows_here() -> None:
    assert {path.stem for path in PRESETS} == set(HUB_ROWS)


@pytest.mark.parametrize("config", ["in_context", "full_ft", "lora", "soft_prompt", "ppo", "dpo"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_sets_source_prompt_and_lengths(preset: Path, config: str, capsys: Any) -> None:
    parsed = parse(capsys, config, preset)
    data, model = parsed["data"]["init_args"], parsed["model"]["init_args"]
    assert preset.stem in data["dialogues" if config == "dpo" else "source"]
    is_news = preset.stem in ("xsum", "cnn_dailymail")
    assert data["prompt"]["class_path"].endswith("Template" if is_news else "Instruction")
    assert model["decoding"]["max_new_tokens"] <= data.get("max_target_length", 128)
    if config == "ppo":
        assert model["ppo"]["max_new_tokens"] <= data["max_target_length"]
        assert (data["max_dialogue_chars"] is None) == is_news
    elif config == "lora":
        assert (parsed["toxicity"]["model"] is None) == is_news


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_files_with_the_hubs_columns_are_summarized(preset: Path, tmp_path: Path) -> None:
    rows = HUB_ROWS[preset.stem]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["-c", "configs/in_context.yaml", "-c", str(preset),
               "-c", "configs/overlays/mini.yaml",
               "--data.source", str(tmp_path), "--run_dir", str(tmp_path / "run"),
               "--model.decoding.max_new_tokens", "4", "--toxicity.model", "null"]  # fmt: skip
    train.main(["test", *options])
    (found,) = RunFolder(tmp_path / "run").read_predictions()
    dialogue, summary = (name for name in rows[0] if name not in ("id", "topic"))
    assert found["dialogue"] == rows[0][dialogue]
    assert found["references"] == [row[summary] for row in rows if row[dialogue]]


@pytest.mark.skipif(not SAMSUM.is_dir(), reason="no SAMSum; name its folder in SAMSUM_DIR")
def test_samsum_loads_from_its_csv_files(capsys: Any) -> None:
    preset = next(path for path in PRESETS if path.stem == "samsum")
    data = parse(capsys, "lora", preset)["data"]["init_args"]
    reader = DialogueReader(str(SAMSUM), ColumnNames(**data["columns"]), data["on_bad_row"])
    assert len(reader.read("train")) == 14731
    assert len(reader.read("validation")) == 818
    assert len(reader.read("test")) == 819
