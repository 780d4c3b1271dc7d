"""A run that broke off, wherever and however often, and was resumed is the uninterrupted run."""

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

# Six steps an epoch. Each break is one of the run that the break before it was resumed by.
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
    "steps of several batches, a validation within one": (
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
    "checkpoints by steps, max_steps, worker processes, sampled texts": (
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


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case: str, fit: Fit, tmp_path: Path) -> None:
    method, settings, breaks = CASES[case]
    fit(method, tmp_path / "whole", *settings)
    resume: list[str] = []
    for place in breaks:
        with pytest.raises((RuntimeError, SystemExit)):
            fit(method, tmp_path / "parts", *settings, *resume, *break_off(*place))
        resume = ["--resume", "auto"]
    fit(method, tmp_path / "parts", *settings, *resume)
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


def test_a_run_that_max_steps_ended_goes_on_within_its_epoch(fit: Fit, tmp_path: Path) -> None:
    constant = ["--model.schedule", "constant"]  # the others end where the fit does
    fit("lora", tmp_path / "whole", *constant)
    fit("lora", tmp_path / "parts", *constant, "--trainer.max_steps", "8")
    fit("lora", tmp_path / "parts", *constant, "--resume", "auto")
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


def test_two_ranks_go_on_with_their_own_random_numbers(fit: Fit, tmp_path: Path) -> None:
    settings = [
        "--trainer.devices", "2", "--trainer.strategy", "ddp_fork", *ACCUMULATE,
        "--data.batch_size", "1", "--checkpoint.every_n_train_steps", "2",
    ]  # fmt: skip
    fit("lora", tmp_path / "whole", *settings)
    with pytest.raises(ProcessRaisedException):
        fit("lora", tmp_path / "parts", *settings, *break_off("on_before_backward", 10, "error"))
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


def test_batches_cut_otherwise_within_an_epoch_are_warned_of(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError):
        fit("lora", tmp_path / "run", *break_off("on_before_backward", 3, "error"))
    fit("lora", tmp_path / "run", "--resume", "auto", "--data.batch_size", "3")
    assert "cut into 6 batches before, and is into 8 now" in caplog.text


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


def test_a_kill_within_a_write_loses_that_checkpoint_at_most(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2"]
    fit("lora", tmp_path / "whole", *settings)
    checkpoints = tmp_path / "parts" / "checkpoints"
    resume: list[str] = []
    # The write that is the death of it: last at step 4, best at step 6, last at 6, last at 8.
    for nth, step in ((2, 2), (2, 4), (2, 4), (3, 6)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", write_half_and_die(nth))
            kill_in_child(lambda: fit("lora", tmp_path / "parts", *settings, *resume))  # noqa: B023
        left = torch.load(checkpoints / "last.ckpt", weights_only=True)
        assert left["global_step"] == step
        assert list(checkpoints.glob(".*.partial"))
        resume = ["--resume", "auto"]
    (checkpoints / ".epoch=1.ckpt.partial").write_bytes(b"half a checkpoint")
    fit("lora", tmp_path / "parts", *settings, *resume)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


def test_a_run_that_is_killed_at_any_moment_goes_on(fit: Fit, tmp_path: Path) -> None:
    settings = ["--checkpoint.every_n_train_steps", "1", "--data.batch_size", "8"]
    started = time.monotonic()
    fit("lora", tmp_path / "whole", *settings)
    seconds = time.monotonic() - started
    moments = random.Random(os.getpid())  # others each time: what holds must hold at any
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    for _ in range(4):
        resume = ["--resume", "auto"] if last.exists() else ["--overwrite", "true"]
        kill_in_child(
            lambda: fit("lora", tmp_path / "parts", *settings, *resume),  # noqa: B023
            after=moments.uniform(0.2, 1.0) * seconds,
        )
    resume = ["--resume", "auto"] if last.exists() else ["--overwrite", "true"]
    fit("lora", tmp_path / "parts", *settings, *resume)
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut off":
        content = content[: len(content) // 2]
    elif how == "one bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "one bit", "gone"])
def test_a_damaged_last_checkpoint_is_named_and_the_best_one_taken(
    how: str, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["--data.batch_size", "8", "--model.optimizer.lr", "1e-9"]  # the first stays best
    fit("lora", tmp_path / "run", *settings)
    expected = take_result(tmp_path / "run")
    best, last = (tmp_path / "run" / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert expected["best/global_step"] < expected["last/global_step"]
    if how == "gone":
        last.unlink()
    else:
        damage(last, how)
    fit("lora", tmp_path / "run", *settings, "--resume", "auto")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"{last}" in said and f"going on from {best}" in said for said in warnings)
    assert differences(take_result(tmp_path / "run"), expected) == []


def test_the_last_checkpoints_are_kept_small_and_the_newest_good_one_is_named(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2", "--checkpoint.keep_last", "3"]
    settings += ["--model.optimizer.lr", "1e-9"]  # the first stays best
    caplog.set_level(logging.INFO)
    fit("lora", tmp_path / "run", *settings)
    folder = tmp_path / "run" / "checkpoints"
    names = ["best.ckpt", "last.ckpt", "step00000008.ckpt", "step00000010.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    trained = sum(value.numel() * value.element_size() for value in state.values())
    for path in folder.iterdir():  # the weights and Adam's two moments, not the backbone
        assert path.stat().st_size < 3 * trained + 100_000
    expected = take_result(tmp_path / "run")
    damage(folder / "last.ckpt", "one bit")
    damage(folder / "step00000010.ckpt", "cut off")
    fit("lora", tmp_path / "run", *settings, "--resume", "auto")
    said = [record.getMessage() for record in caplog.records]
    good = folder / "step00000008.ckpt"
    assert any(f"Resuming from {good} (epoch 1, step 8, written 2" in line for line in said)
    assert sum(f"going on from {good} instead" in line for line in said) == 2
    assert differences(take_result(tmp_path / "run"), expected) == []
    assert sorted(path.name for path in folder.iterdir()) == names
    for path in folder.glob("step*"):
        assert torch.load(path, weights_only=True)["global_step"] == int(path.stem[4:])


def test_one_who_goes_back_keeps_the_new_checkpoints_and_not_those_of_the_old_road(
    fit: Fit, tmp_path: Path
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2", "--checkpoint.keep_last", "4"]
    fit("lora", tmp_path / "run", *settings)
    folder = tmp_path / "run" / "checkpoints"
    old = (folder / "step00000010.ckpt").stat().st_ino
    back = ["--resume", str(folder / "step00000006.ckpt"), "--trainer.max_steps", "10"]
    fit("lora", tmp_path / "run", *settings, *back)
    kept = {path.name for path in folder.glob("step*")}
    assert kept == {"step00000008.ckpt", "step00000010.ckpt", "step00000006.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10
    assert (folder / "step00000010.ckpt").stat().st_ino == old


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--checkpoint.keep_last", "0"], "keep_last must be 1 or more"),
        (["--checkpoint.save_top_k", "2"], "set checkpoint.keep_last"),
    ],
)
def test_impossible_numbers_of_checkpoints_are_refused(
    settings: list[str], words: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", *settings)
    assert stop.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_without_a_good_checkpoint_nothing_is_started(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("lora", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        damage(path, "cut off")
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


def test_a_full_disk_leaves_the_earlier_checkpoint(
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
    assert "last.ckpt could not be written" in said
    assert "--resume auto" in said
    checkpoints = tmp_path / "parts" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


# Early stopping ---------------------------------------------------------------------------------


def test_early_stopping_holds_when_the_run_is_resumed(fit: Fit, tmp_path: Path) -> None:
    # Nothing is learnt, so the first validation stays the best. The first three validations come
    # after 3, 6 and 9 batches, each within a step of four.
    settings = ["--model.optimizer.lr", "0", "--trainer.max_epochs", "9"]
    settings += ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "4"]
    settings += ["--trainer.val_check_interval", "3"]
    patient = [*settings, "--early_stopping.patience", "2"]

    def validations(folder: str) -> int:
        rows = RunFolder(tmp_path / folder).read_metrics_csv()
        return sum(bool(row["val/rougeL"]) for row in rows)

    fit("lora", tmp_path / "whole", *patient)
    assert validations("whole") == 3
    with pytest.raises(SystemExit):
        # After the second validation, and before the end of the step that it lies in.
        broken = break_off("on_train_batch_start", 8, "ctrl-c")
        fit("lora", tmp_path / "parts", *patient, *broken)
    fit("lora", tmp_path / "parts", *patient, "--resume", "auto")
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []
    fit("lora", tmp_path / "parts", *patient, "--resume", "auto")
    assert differences(take_result(tmp_path / "parts"), whole) == []
    fit("lora", tmp_path / "parts", *settings, "--early_stopping.patience", "4", "--resume", "auto")
    assert validations("parts") == 5


def test_early_stopping_is_off_unless_asked_for_and_wants_a_metric(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("lora", tmp_path / "run", "--model.optimizer.lr", "0", "--trainer.max_epochs", "5")
    assert int(RunFolder(tmp_path / "run").read_metrics_csv()[-1]["epoch"]) == 4
    for settings in (
        ["--early_stopping.patience", "0"],
        ["--early_stopping.patience", "2", "--checkpoint.monitor", "null"],
    ):
        with pytest.raises(SystemExit) as stop:
            fit("lora", tmp_path / "refused", *settings)
        assert stop.value.code == 2
        assert "checkpoint.monitor" in capsys.readouterr().err
