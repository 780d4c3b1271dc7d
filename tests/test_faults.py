"""What is not finite is skipped once, with a record to replay; again, it stops the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import replay
from callbacks.faults import FaultGuard, as_json
from replay_fault import replay_fault
from run_folder import RunFolder
from tests.breaking import break_off, differences, poison, take_result
from tests.conftest import Fit
from tests.rows import make_rows, write_rows


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def stops(fit: Fit, folder: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    """Fit, expecting exit code 2; give what was said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fit("lora", folder, *settings)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_step_is_skipped_once_with_a_record_and_resumed_past(fit: Fit, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "whole")
    fit("lora", run.path, *poison(3))
    names = {"step00000003-rank0.jsonl", "step00000003-rank0.pt", "step00000003.ckpt"}
    assert {path.name for path in run.faults.iterdir()} == names
    rows = read_rows(run.faults / "step00000003-rank0.jsonl")
    assert {"id", "dialogue", "references", "micro_batch", "loss_sum"} == rows[0].keys()
    (skipped,) = run.read_summary()["skipped"]
    assert skipped["what"] == "train/grad_norm is nan"
    assert skipped["rows"] == [row["id"] for row in rows]
    logged = run.read_metrics_csv()
    assert [row["step"] for row in logged if row["train/skipped"]] == ["3"]
    norms = [row["train/grad_norm"] for row in logged if row["train/grad_norm"]]
    assert [place for place, norm in enumerate(norms) if norm == "nan"] == [3]
    last = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert last["global_step"] == 12  # a skipped step is a step
    assert {int(each["step"]) for each in last["optimizer_states"][0]["state"].values()} == {11}

    with pytest.raises(RuntimeError):
        fit("lora", tmp_path / "parts", *poison(3), *break_off("on_before_backward", 6, "error"))
    fit("lora", tmp_path / "parts", *poison(3), "--resume", "auto")
    assert differences(take_result(tmp_path / "parts"), take_result(run.path)) == []
    assert RunFolder(tmp_path / "parts").read_summary()["skipped"] == [skipped]


def test_it_stops_where_it_happens_again(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stops(fit, tmp_path / "run", capsys, *poison(3, 7))
    assert "train/grad_norm is nan at step00000007, on rows r" in said
    assert "so it was at step00000003 (faults.skips 1)" in said
    assert "faults/step00000007-rank0.jsonl" in said
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 7
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    # The same again from there, until more is allowed.
    assert "step00000007" in stops(fit, tmp_path / "run", capsys, *poison(3, 7), "--resume", "auto")
    fit("lora", tmp_path / "run", *poison(3, 7), "--resume", "auto", "--faults.skips", "2")
    fit("lora", tmp_path / "far", *poison(3, 7), "--faults.window", "4")
    assert differences(take_result(tmp_path / "run"), take_result(tmp_path / "far")) == []
    said = stops(fit, tmp_path / "at once", capsys, *poison(3), "--faults.skips", "0")
    assert "nan at step00000003" in said


@pytest.fixture
def sore_t5(t5: str, tmp_path: Path) -> str:
    """A backbone that knows no "~": whatever has it in it becomes NaN."""
    tokenizer, model = AutoTokenizer.from_pretrained(t5), AutoModelForSeq2SeqLM.from_pretrained(t5)
    model.shared.weight.data[tokenizer("~").input_ids[0]] = torch.nan
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "t5")
    return str(tmp_path / "t5")


def test_the_row_to_blame_is_found_by_replay(
    fit: Fit, sore_t5: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(22)
    rows[7]["dialogue"] += "~"
    write_rows(tmp_path / "data", train=rows, validation=make_rows(4))
    run = tmp_path / "run"
    said = stops(
        fit, run, capsys, "--model.backbone", sore_t5, "--data.source", str(tmp_path / "data"),
        "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2",
    )  # fmt: skip
    assert "train/loss is nan, train/grad_norm is nan" in said
    first, second = sorted(RunFolder(run).faults.glob("*.ckpt"))  # once in each epoch
    blamed = said.partition("on rows ")[2].partition(",")[0]
    for place in (first.stem, second.stem):
        rows = read_rows(RunFolder(run).faults / f"{place}-rank0.jsonl")
        assert {row["loss_sum"] == "nan" for row in rows} == {True, False}
        assert "r7" in {row["id"] for row in rows if row["loss_sum"] == "nan"}
    assert blamed in {row["id"] for row in rows if row["loss_sum"] == "nan"}
    capsys.readouterr()
    assert replay.main([str(run), "--fault", second.stem]) == 0
    shown = capsys.readouterr().out
    alone = [line for line in shown.splitlines() if "alone" in line]
    assert [line for line in alone if "nan" in line] == [line for line in alone if "r7," in line]
    assert replay.main([str(run), "--fault", "step99999999"]) == 2


def test_a_replay_has_the_numbers_of_the_run_dropout_included(fit: Fit, tmp_path: Path) -> None:
    fit("lora", tmp_path / "run", *poison(3))
    module = replay.build_module(replay.read_settings(tmp_path / "run"))
    found = replay_fault(module, tmp_path / "run", "step00000003", "32-true")
    before, now = found.numbers["loss of micro-batch 0"]
    assert before == now
    assert not found.is_fault  # the poison was not in the row


@pytest.mark.parametrize("settings", [{"skips": -1}, {"window": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"skips must be 0 or more and window 1 or more"):
        FaultGuard(**settings)


def test_records_are_json_that_others_can_read() -> None:
    assert as_json({"a": [float("nan"), (1, float("-inf"))]}) == {"a": ["nan", [1, "-inf"]]}
