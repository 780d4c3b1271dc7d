"""SIGTERM and Ctrl-C: the step is finished and saved, and the run resumes from there."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import train
from common.run_folder import RunFolder
from tests.breaking import break_off, differences, take_result
from tests.conftest import Fit
from tests.launching import run_ranks
from tests.test_strategies import SHARDED


def last_step(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


@pytest.mark.parametrize(
    ("how", "hook", "call", "step"),
    [
        ("sigterm", "on_before_backward", 3, 3),  # in the third step
        ("sigint", "on_before_optimizer_step", 4, 4),
        ("sigterm", "on_validation_batch_start", 1, 6),
        ("sigint", "on_train_epoch_end", 1, 7),  # too late for the checkpoint of step 6
    ],
)
def test_signal_lets_the_step_finish(
    how: str, hook: str, call: int, step: int, fit: Fit, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", *break_off(hook, call, how))
    assert stop.value.code == 128 + signal.Signals[how.upper()]
    assert f"Stopped by {how.upper()}" in caplog.text
    assert last_step(tmp_path / "run") == step
    losses = [row for row in RunFolder(tmp_path / "run").read_metrics_csv() if row["train/loss"]]
    assert len(losses) == step
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class SignalWorkers(L.Callback):
    """Sends a signal to the loader's workers and to this process, as a terminal does."""

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


def test_signal_to_all_processes_spares_the_workers(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", "--data.num_workers", "2",
            "--trainer.callbacks+=tests.test_signals.SignalWorkers")  # fmt: skip
    assert stop.value.code == 143
    assert last_step(tmp_path / "run") == 3


@pytest.mark.parametrize("hook", ["on_train_start", "on_before_backward"])
def test_advice_can_be_followed(
    hook: str, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        fit("lora", tmp_path / "run", *break_off(hook, 1, "sigterm"))
    assert "Stopped by SIGTERM; " in caplog.text
    assert "--resume auto" in caplog.text
    fit("lora", tmp_path / "run", "--resume", "auto", "--trainer.max_epochs", "1")


def test_second_ctrl_c_ends_the_run_at_once(fit: Fit, tmp_path: Path) -> None:
    settings = ["--checkpoint.every_n_train_steps", "1"]
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", *settings, *break_off("on_before_backward", 3, "ctrl-c"))
    assert stop.value.code == 130
    assert last_step(tmp_path / "run") == 2


# Two ranks --------------------------------------------------------------------------------------


@pytest.fixture
def fit_ranks(
    fit_arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[int]]:
    """Fit on two ranks; give their exit codes."""
    monkeypatch.setattr("callbacks.plots.draw_run", lambda folder: None)

    def run(name: str, *more: str) -> list[int]:
        arguments = fit_arguments(
            "lora", tmp_path / name, "--trainer.devices", "2", "--trainer.strategy", "ddp",
            "--data.batch_size", "2", "--checkpoint.every_n_train_steps", "2",
            *more,
        )  # fmt: skip
        return run_ranks(lambda: train.main(arguments), tmp_path)

    return run


def output_of(rank: int, folder: Path) -> str:
    return " ".join((folder / f"rank{rank}.log").read_text(errors="replace").split())


def test_signal_to_one_rank_stops_both_after_the_same_step(
    fit_ranks: Callable[..., list[int]], tmp_path: Path
) -> None:
    assert fit_ranks("whole") == [0, 0]
    broken = break_off("on_before_backward", 3, "sigterm", rank=1)
    assert fit_ranks("parts", *broken) == [143, 143], output_of(0, tmp_path)
    assert last_step(tmp_path / "parts") == 3
    assert fit_ranks("parts", "--resume", "auto") == [0, 0]
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_run_resumes_with_more_or_fewer_ranks(
    strategy: str, fit: Fit, fit_ranks: Callable[..., list[int]], tmp_path: Path
) -> None:
    even = ["--model.lora_dropout", "0", "--model.dropout", "0"]
    shared = [*even, "--trainer.strategy", strategy]
    one, parts = ["--data.batch_size", "4", *even], tmp_path / "parts"
    fit("lora", tmp_path / "whole", *one)
    first = break_off("on_before_backward", 3, "sigterm", rank=1)
    assert fit_ranks("parts", *shared, *first) == [143, 143], output_of(0, tmp_path)
    assert last_step(parts) == 3
    with pytest.raises(SystemExit):  # on one rank, into the second epoch
        fit("lora", parts, *one, *break_off("on_before_backward", 5, "sigterm"), "--resume", "auto")
    assert last_step(parts) == 8
    assert fit_ranks("parts", *shared, "--resume", "auto") == [0, 0], output_of(0, tmp_path)
    logged = [
        [float(row["train/loss"]) for row in RunFolder(run).read_metrics_csv() if row["train/loss"]]
        for run in (tmp_path / "whole", parts)
    ]
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)  # so each step had the same rows
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "whole", parts)
    ]
    # Two ranks add up in another order; Adam makes of a rounded gradient near 0 a step of its own.
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-5, atol=1e-5), name
