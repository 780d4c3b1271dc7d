"""The road on real DialogSum text, with the miniature's models: it runs through; scores are low."""

import json
import os
from pathlib import Path

import pytest

import train
from common.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DIALOGSUM_DIR", ROOT.parent / "shared" / "data" / "dialogsum"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not DATA.is_dir(), reason=f"no DialogSum in {DATA}; name its folder in DIALOGSUM_DIR"
    ),
]


def test_lora_then_ppo_on_real_dialogues(tmp_path: Path) -> None:
    def settings(method: str) -> list[str]:
        return [
            "--config", str(ROOT / "configs" / f"{method}.yaml"),
            "--config", str(ROOT / "configs" / "overlays" / "mini.yaml"),
            "--data.source", str(DATA), "--run_dir", str(tmp_path / method),
            "--trainer.limit_train_batches", "4",
        ]  # fmt: skip

    train.main(["fit", *settings("lora"), "--trainer.max_epochs", "1"])
    train.main(["test", *settings("lora")])
    rows = RunFolder(tmp_path / "lora").read_predictions()
    lines = (DATA / "dialogsum.test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row["dialogue"] for row in rows] == [json.loads(line)["dialogue"] for line in lines]
    assert {len(row["references"]) for row in rows} == {3}

    ppo = [*settings("ppo"), "--model.adapter", str(tmp_path / "lora" / "export")]
    train.main(["fit", *ppo])
    train.main(["test", *ppo, "--trainer.limit_test_batches", "2"])
    metrics = RunFolder(tmp_path / "ppo").read_summary()["metrics"]
    assert metrics["test/toxicity_change"]["n"] > 0
    rows = RunFolder(tmp_path / "ppo").read_metrics_csv()
    first = next(row for row in rows if row["objective/kl"])
    assert abs(float(first["objective/kl"])) < 1e-4
