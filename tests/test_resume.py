"""A run that was interrupted anywhere, and resumed, ends like an uninterrupted one."""

import json
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from common.run_folder import RunFolder
from tests.breaking import break_off, differences, take_result
from tests.conftest import Fit

ACCUMULATE = ["--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2"]
RATES = ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]

# Six steps per epoch. Each interruption hits the run that was resumed after the one before it.
CASES: dict[str, tuple[str, list[str], list[tuple[str, int, str]]]] = {
    "epochs": (
        "soft_prompt",
        ["--model.virtual_tokens", "5", *RATES],
        [
            ("on_before_backward", 3, "error"),
            ("on_train_batch_end", 3, "ctrl-c"),
            ("on_validation_batch_end", 1, "error"),
            ("on_train_epoch_end", 1, "ctrl-c"),
            ("on_train_batch_start", 5, "sigterm"),
            ("on_train_end", 1, "error"),
        ],
    ),
    "accumulation, a validation within a step": (
        "full_ft",
        [*ACCUMULATE, *RATES, "--trainer.val_check_interval", "3"],
        [
            ("on_before_backward", 6, "error"),  # in the middle of the third step
            ("on_validation_batch_end", 2, "ctrl-c"),
            ("on_train_batch_start", 2, "error"),
            ("on_validation_end", 2, "error"),
            ("on_train_batch_end", 4, "sigterm"),
        ],
    ),
    "accumulation, several validations within a step": (
        "lora",
        ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "4", *RATES,
         "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1",
         "--trainer.limit_train_batches", "8", "--trainer.max_epochs", "1"],
        [("on_train_batch_end", 7, "error")],
    ),
    # Nothing is learned, so the first validation stays the best. The first three validations come
    # after 3, 6 and 9 batches, each within a step of four.
    "early stopping": (
        "lora",
        ["--model.optimizer.lr", "0", "--trainer.max_epochs", "9", "--data.batch_size", "1",
         "--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "3",
         "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/rougeL",
         "--trainer.callbacks.mode", "max", "--trainer.callbacks.patience", "2",
         "--trainer.callbacks.check_on_train_epoch_end", "false"],
        [("on_train_batch_start", 8, "ctrl-c")],
    ),
    "two ranks": (
        "lora",
        ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", *ACCUMULATE,
         "--data.batch_size", "1", "--checkpoint.every_n_train_steps", "2"],
        [("on_before_backward", 10, "error")],
    ),
    "no validation, five of six batches": (  # the loader itself never reaches its end
        "lora",
        ["--trainer.limit_val_batches", "0", "--trainer.limit_train_batches", "5",
         "--checkpoint.monitor", "null", "--checkpoint.every_n_train_steps", "2"],
        [("on_train_batch_start", 5, "error"), ("on_train_batch_start", 5, "error")],
    ),
    "checkpoints by steps, max_steps, workers, sampled texts": (
        "lora",
        [
            "--trainer.max_steps", "11", "--trainer.max_epochs", "9",
            "--checkpoint.every_n_train_steps", "2", "--data.num_workers", "1",
            "--model.decoding.do_sample", "true", "--trainer.val_check_interval", "4",
        ],
        [
            ("on_train_batch_start", 4, "error"),
            ("on_validation_batch_start", 1, "error"),
            ("on_train_epoch_end", 1, "error"),
            ("on_train_batch_end", 3, "error"),
        ],
    ),
}  # fmt: skip


def assert_same_result(folder: Path) -> None:
    whole, parts = take_result(folder / "whole"), take_result(folder / "parts")
    assert differences(parts, whole) == []


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_uninterrupted_run(case: str, fit: Fit, tmp_path: Path) -> None:
    method, settings, breaks = CASES[case]
    fit(method, tmp_path / "whole", *settings)
    resume: list[str] = []
    for place in breaks:
        with pytest.raises((RuntimeError, SystemExit, ProcessRaisedException)):
            fit(method, tmp_path / "parts", *settings, *resume, *break_off(*place))
        resume = ["--resume", "auto"]
    fit(method, tmp_path / "parts", *settings, *resume)
    assert_same_result(tmp_path)


def test_run_ended_by_max_steps_continues_within_its_epoch(fit: Fit, tmp_path: Path) -> None:
    constant = ["--model.schedule", "constant"]  # the other schedules end with the fit
    fit("lora", tmp_path / "whole", *constant)
    fit("lora", tmp_path / "parts", *constant, "--trainer.max_steps", "8")
    fit("lora", tmp_path / "parts", *constant, "--resume", "auto")
    assert_same_result(tmp_path)


def test_validation_first_is_not_repeated_on_resuming(fit: Fit, tmp_path: Path) -> None:
    settings = ["--validate_first", "true"]
    fit("lora", tmp_path / "whole", *settings)
    for resume in ([], ["--resume", "auto"]):  # before any checkpoint, and after the first
        call = 9 if resume else 3
        broken = break_off("on_train_batch_start", call, "error")
        with pytest.raises(RuntimeError):
            fit("lora", tmp_path / "parts", *settings, *resume, *broken)
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    assert_same_result(tmp_path)
    rows = RunFolder(tmp_path / "whole").read_metrics_csv()
    assert [int(row["step"]) for row in rows if row["val/rougeL"]] == [0, 6, 12]
    lines = RunFolder(tmp_path / "whole").samples.read_text().splitlines()
    samples = [json.loads(line)["step"] for line in lines]
    assert sorted(set(samples)) == [0, 6, 12]


def test_changed_batches_within_an_epoch_are_reported(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        fit("lora", tmp_path / "run", *break_off("on_before_backward", 2, "sigterm"))
    fit("lora", tmp_path / "run", "--resume", "auto", "--data.batch_size", "3")
    assert "had 6 batches when the checkpoint was saved and has 8 now" in caplog.text


def test_changed_number_of_workers_is_refused(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit("lora", tmp_path / "run", *break_off("on_before_backward", 2, "sigterm"))
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", "--resume", "auto", "--data.num_workers", "1")
    assert stop.value.code == 2
    assert "data.num_workers is 1 and was 0" in capsys.readouterr().err


def read_checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


# Killed -----------------------------------------------------------------------------------------


def kill_in_child(work: Callable[[], None], after: float | None = None) -> None:
    """Do work in a child process, which is killed: by the work itself, or after some seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def write_half_and_die(nth: int) -> Callable[..., None]:
    """Stand in for torch.save: half of the n-th checkpoint is written, then the process is dead."""
    save, calls = torch.save, [0]

    def write(content: Any, target: Any) -> None:
        calls[0] += 1
        save(content, target)
        if calls[0] == nth:
            os.truncate(target, os.path.getsize(target) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return write


def test_kill_within_a_write_loses_that_checkpoint_only(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2"]
    fit("lora", tmp_path / "whole", *settings)
    checkpoints = tmp_path / "parts" / "checkpoints"
    # The fatal write: step 4, step 6, the best one at step 6, the one after its validation.
    for nth, step in ((2, 2), (2, 4), (2, 4), (3, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", write_half_and_die(nth))
            kill_in_child(lambda: fit("lora", tmp_path / "parts", *settings, "--resume", "auto"))
        assert read_checkpoint(tmp_path / "parts")["global_step"] == step
        assert list(checkpoints.glob(".*.partial"))
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    names = ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in checkpoints.iterdir()) == names
    assert_same_result(tmp_path)


def test_run_killed_at_random_moments_ends_the_same(fit: Fit, tmp_path: Path) -> None:
    settings = ["--checkpoint.every_n_train_steps", "1", "--data.batch_size", "8"]
    started = time.monotonic()
    fit("lora", tmp_path / "whole", *settings)
    seconds = time.monotonic() - started
    moments = random.Random(os.getpid())  # different each time: any moment must do
    for _ in range(4):
        kill_in_child(
            lambda: fit("lora", tmp_path / "parts", *settings, "--resume", "auto"),
            after=moments.uniform(0.2, 1.0) * seconds,
        )
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    assert_same_result(tmp_path)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_damaged_last_checkpoint_is_named_and_the_previous_one_taken(
    harm: Callable[[Path], None], fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2"]
    fit("lora", tmp_path / "run", *settings)
    expected = take_result(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    os.utime(previous)  # newer than best.ckpt
    harm(last)
    caplog.set_level(logging.INFO)
    fit("lora", tmp_path / "run", *settings, "--resume", "auto")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"{last}" in said and f"{previous} instead" in said for said in warnings)
    assert f"Resuming from {previous} (epoch 1, step 10, written 2" in caplog.text
    assert differences(take_result(tmp_path / "run"), expected) == []


def test_checkpoint_after_minutes(fit: Fit, tmp_path: Path) -> None:
    broken = break_off("on_train_batch_start", 4, "error")
    with pytest.raises(RuntimeError):
        fit("lora", tmp_path / "run", "--checkpoint.every_minutes", "1e-9", *broken)
    assert read_checkpoint(tmp_path / "run")["global_step"] == 2  # of step 3 it was not complete


def test_without_an_intact_checkpoint_nothing_is_started(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("lora", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for wanted, files in (("auto", ("last", "best")), (str(checkpoints / "best.ckpt"), ("best",))):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            fit("lora", tmp_path / "run", "--resume", wanted)
        assert stop.value.code == 2
        said = capsys.readouterr().err
        for name in files:
            assert f"{checkpoints / name}.ckpt cannot be read" in said
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def test_full_disk_leaves_the_earlier_checkpoint(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2"]
    fit("lora", tmp_path / "whole", *settings)
    save, limits = torch.save, resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = [0]

    def save_without_room(content: Any, target: Any) -> None:
        calls[0] += 1
        room = 50_000 if calls[0] > 1 else limits[0]  # bytes in one file; the system refuses more
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            save(content, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_without_room)
        with pytest.raises(SystemExit) as stop:
            fit("lora", tmp_path / "parts", *settings)
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ".next.ckpt could not be written" in said
    assert "--resume auto" in said
    checkpoints = tmp_path / "parts" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    assert_same_result(tmp_path)


def test_run_without_checkpoints_and_progress_bar(fit: Fit, tmp_path: Path) -> None:
    plain = ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"]
    fit("lora", tmp_path / "run", *plain, "--trainer.max_epochs", "1")
    folder = RunFolder(tmp_path / "run")
    assert folder.export.is_dir()
    assert not list(folder.checkpoints.glob("*"))
    with pytest.raises(SystemExit):  # nothing to save, and the step is finished all the same
        fit("lora", tmp_path / "stopped", *plain, *break_off("on_before_backward", 2, "sigterm"))
    losses = [row["train/loss"] for row in RunFolder(tmp_path / "stopped").read_metrics_csv()]
    assert len(losses) == 2
