"""The GPU's benchmark goes through all its parts; what it measures only a GPU can show."""

import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks import gpu
from benchmarks.gpu_machine import BASE
from benchmarks.gpu_parts import count_bytes
from benchmarks.models import FLAN_T5_BASE


def test_a_dry_run_of_all_parts(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--rounds", "1", "--peak_tflops", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(row["method"], row["compile"]) for row in found["training"]] == [
        ("full", None), ("full", "eager"), ("LoRA", None), ("LoRA", "eager"),
    ]  # fmt: skip
    for row in found["training"]:
        assert row["tokens_per_s"] == pytest.approx(4 * (16 + 8) / row["step_s"])
        rate = row["tflop"] / row["step_s"]
        assert row["share_of_peak"] == pytest.approx(rate / found["peak_tflops"])
        assert row["share_of_product"] == pytest.approx(rate / found["product_tflops"])
    assert [(row["compile"], row["compile_decoding"]) for row in found["ppo"]] == [
        (None, None), (None, "eager"), ("eager", "eager"),
    ]  # fmt: skip
    for row in found["ppo"]:
        parts = row["rollout_s"] + row["score_s"] + row["update_s"]
        assert 0 < parts <= 1.5 * row["step_s"]
    for row in found["decoding"]:
        assert row["step / bytes"] == pytest.approx(row["step_s"] / row["bytes_s"])
    assert found["versions"]["torch"] == torch.__version__


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().out


def test_the_bytes_of_a_decoding_step_by_hand() -> None:
    config = T5Config(**FLAN_T5_BASE, tie_word_embeddings=False, decoder_start_token_id=0)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    # A layer: q, k, v, o of self-attention, q and o of cross-attention, three matrices of the
    # feed-forward, three norms; then the last norm, 32 biases of 12 heads, and the head.
    weights = 12 * (6 * 768 * 768 + 3 * 768 * 2048 + 3 * 768) + 768 + 32 * 12 + 32128 * 768
    # A key and a value of 768 in 12 layers for each of 16 rows, of 256 tokens and half of 64.
    kept = 16 * (256 + 32) * 12 * 2 * 768
    assert count_bytes(model, BASE) == 2 * (weights + kept)
