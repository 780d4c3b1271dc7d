"""Runs of every method from the command line, on a decoder-only model with a chat template."""

import json
from pathlib import Path

import pytest
import torch

import train
from alignsum.__main__ import main as alignsum
from datamodules.preferences import PreferenceDataModule
from lightning_modules.reward_model import RewardModel
from lightning_modules.reward_scorer import RewardScorer
from tests.backbones.decoders import save
from tests.batches import make_trainer
from tests.breaking import break_off, differences, take_result
from tests.conftest import CONFIGS, Fit
from tests.rows import make_rows, write_rows

METHODS = {
    "full_ft": [],
    "lora": ["--model.r", "4"],
    "soft_prompt": ["--model.virtual_tokens", "5"],
    "ppo": [
        "--model.advantage", "GRPO", "--model.ppo.samples", "2", "--model.ppo.max_new_tokens", "6",
        "--data.min_dialogue_chars", "0", "--data.max_dialogue_chars", "null",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one_and_its_export_predicts(
    llama: str, roberta: str, fit: Fit, method: str, tmp_path: Path
) -> None:
    settings = ["--model.backbone", llama, "--data.chat_template", "true", *METHODS[method]]
    if method == "ppo":
        settings += ["--model.reward_model", roberta]
    fit(method, tmp_path / "whole", *settings)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(method, tmp_path / "parts", *settings, *break_off("on_train_batch_start", 8, "error"))
    fit(method, tmp_path / "parts", *settings, "--resume", "auto")
    assert differences(take_result(tmp_path / "parts"), take_result(tmp_path / "whole")) == []

    source, run = tmp_path / "rows.jsonl", tmp_path / "whole"
    source.write_text("".join(json.dumps(row) + "\n" for row in make_rows(5)))
    options = ["--input", str(source), "--max_new_tokens", "6", "--device", "cpu"]
    assert predict(run, options, tmp_path / "texts.jsonl")
    if method == "lora":
        assert alignsum(["merge", str(run / "export"), "--out", str(tmp_path / "merged")]) == 0
        merged = [*options, "--chat_template", "true"]
        texts = predict(tmp_path / "merged", merged, tmp_path / "merged.jsonl")
        assert texts == (tmp_path / "texts.jsonl").read_text()


def predict(run: Path, options: list[str], output: Path) -> str:
    assert alignsum(["predict", str(run), *options, "--output", str(output)]) == 0
    text = output.read_text()
    assert len(text.splitlines()) == 5
    return text


def test_examples_are_shown_in_the_chat(llama: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", train=make_rows(8), test=make_rows(4))
    train.main(
        ["test", "--config", str(CONFIGS / "in_context.yaml"), "--model.backbone", llama,
         "--data.source", str(rows), "--data.chat_template", "true", "--data.shots", "1",
         "--toxicity.model", "null", "--model.decoding.max_new_tokens", "4",
         "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
         "--run_dir", str(tmp_path / "run")]
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "test/rouge1" in summary["metrics"]


@pytest.mark.parametrize("method", ["full_ft", "lora", "soft_prompt", "ppo"])
def test_the_memory_is_planned(llama: str, method: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(CONFIGS / f"{method}.yaml"), "--model.backbone", llama]
    reward = ["--model.reward_model", "mini"] if method == "ppo" else []
    source = ["--data.source", "mini", "--toxicity.model", "null"]
    assert alignsum(["plan", *arguments, *reward, *source, "--trainer.accelerator", "cpu"]) == 0
    assert "keys and values" in capfd.readouterr().out


@torch.no_grad()
def test_a_reward_model_reads_the_last_token(llama: str, tmp_path: Path) -> None:
    """Padded or not, trained and exported by the same code as an encoder."""
    data = PreferenceDataModule("mini", llama, batch_size=4, max_length=120)
    module = RewardModel(backbone=llama, dropout=0.0)
    settings = {"limit_train_batches": 2, "limit_val_batches": 1}
    with torch.enable_grad():
        make_trainer(tmp_path, **settings).fit(module, datamodule=data)
    module.export(tmp_path / "export")
    scorer, texts = (
        RewardScorer(str(tmp_path / "export")),
        ["Yes.", "A much longer text than that."],
    )
    alone = torch.cat([scorer.logits([text]) for text in texts])
    torch.testing.assert_close(scorer.logits(texts), alone)
