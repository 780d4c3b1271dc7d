"""A disk that fills up and services that drop out, in the middle of a run."""

import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
import wandb
from huggingface_hub import constants
from wandb.proto import wandb_internal_pb2

import hub
import merge
import predict
import report
from run_folder import RunFolder
from tests.breaking import differences, take_result
from tests.conftest import Fit

FILLER = "filler"


def fill_disk(folder: Path) -> None:
    """Leave no byte on the disk of a folder."""
    with suppress(OSError), Path(folder, FILLER).open("wb", 0) as file:
        while True:
            file.write(b"x" * 512)


class FillDisk(L.Callback):
    """Leaves no byte on the disk of the run folder, from a step on, or from the end of training."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            fill_disk(Path(trainer.default_root_dir))

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.step is None:
            fill_disk(Path(trainer.default_root_dir))
            filler = Path(trainer.default_root_dir, FILLER)
            # The summary still has room; an export has not.
            os.truncate(filler, filler.stat().st_size - 200_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    # Lazily: a log file of the run may still be open.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_said_and_leaves_what_there_was(
    small_disk: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--checkpoint.every_n_train_steps", "2"]
    fit("lora", tmp_path / "whole", *settings)
    run = small_disk / "run"
    with pytest.raises(SystemExit) as stop:
        fit("lora", run, *settings, "--trainer.callbacks+=tests.test_disk_and_net.FillDisk",
            "--trainer.callbacks.step", "5")  # fmt: skip
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The disk is full: make room" in said or "Make room on the disk" in said
    assert "--resume auto" in said
    assert "Traceback" not in said
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not list((run / "checkpoints").glob(".*"))
    (run / FILLER).unlink()
    fit("lora", run, *settings, "--resume", "auto")
    assert differences(take_result(run), take_result(tmp_path / "whole")) == []


def test_an_export_without_room_is_said_and_made_by_resuming(
    small_disk: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = small_disk / "run", ["--trainer.max_epochs", "1"]
    with pytest.raises(SystemExit) as stop:
        fit("full_ft", run, *settings, "--trainer.callbacks+=tests.test_disk_and_net.FillDisk")
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the model could not be written to {run}" in said
    assert "Traceback" not in said
    assert not (run / "export").exists()
    assert not list(run.glob(".export*"))
    (run / FILLER).unlink()
    fit("full_ft", run, *settings, "--resume", "auto")
    assert (run / "export" / "model.safetensors").exists()


def test_other_programs_without_room_say_of_what(
    small_disk: Path, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit("lora", tmp_path / "run", "--trainer.max_epochs", "1")
    (tmp_path / "in.txt").write_text("#Person1#: Hello.\n")
    fill_disk(small_disk)
    run, export = str(tmp_path / "run"), str(tmp_path / "run" / "export")
    for main, arguments, name in (
        (report.main, ["compare", run, "--out"], "report"),
        (predict.main, [run, "--input", str(tmp_path / "in.txt"), "--output"], "out.jsonl"),
        (merge.main, [export, "--out"], "merged"),
    ):
        caplog.clear()
        assert main([*arguments, str(small_disk / name)]) == 2
        assert "No space left" in caplog.text
        assert str(small_disk) in caplog.text
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size == 0]
    assert left in ([], [small_disk / "out.jsonl"])  # opened, and to be gone on with


# Weights & Biases -------------------------------------------------------------------------------


class KillWandb(L.Callback):
    """Kills W&B's service process behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            for number in service_processes():
                os.kill(number, signal.SIGKILL)
            time.sleep(0.3)


def service_processes() -> list[int]:
    """Find the service processes of W&B that this process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            lines = status.read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields["Name"] == "wandb-core" and int(fields["PPid"]) == os.getpid():
                found.append(int(status.parent.name))
    return found


def read_records(file: Path) -> Iterator[bytes]:
    """Read the records of a file of W&B's, which has the form of LevelDB's logs."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_steps(folder: Path) -> list[int]:
    """Read from W&B's own files at which steps a training loss was logged."""
    steps = []
    for file in folder.rglob("*.wandb"):
        for data in read_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            values = {
                item.key or "/".join(item.nested_key): item.value_json
                for item in record.history.item
            }
            if "train/loss" in values:
                steps.append(int(values["trainer/global_step"]))
    return steps


def test_a_run_goes_on_without_wandb_and_it_catches_up(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "wandb").mkdir()
    fit("lora", tmp_path / "whole")
    try:
        fit(
            "lora", tmp_path / "run", "--config", "configs/overlays/wandb.yaml",
            "--trainer.logger.init_args.save_dir", str(tmp_path / "wandb"),
            "--trainer.logger.init_args.retry_seconds", "0",
            "--trainer.callbacks+=tests.test_disk_and_net.KillWandb", "--trainer.callbacks.step",
            "4",
        )  # fmt: skip
    finally:
        wandb.teardown()
    assert "W&B has dropped out" in caplog.text
    assert "W&B is back" in caplog.text
    csv = RunFolder(tmp_path / "run").metrics_csv.read_text()
    assert csv == RunFolder(tmp_path / "whole").metrics_csv.read_text()
    steps = read_steps(tmp_path / "wandb")
    lost = {3, 4} - set(steps)  # what the killed process had not yet written
    assert set(steps) >= set(range(5, 12)), lost


# The hub ----------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers everything with nothing."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        pass


server: HTTPServer | None = None


class CloseHub(L.Callback):
    """Takes the hub away when the training starts."""

    def on_train_start(self, *_: Any) -> None:
        assert server is not None
        server.shutdown()
        server.server_close()


def test_a_run_goes_on_without_the_hub(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global server
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    hub.reachable.cache_clear()
    try:
        fit("lora", tmp_path / "run", "--trainer.callbacks+=tests.test_disk_and_net.CloseHub")
        assert "/" in Hub.asked  # it was there at the start
    finally:
        hub.reachable.cache_clear()
    assert (RunFolder(tmp_path / "run").export / "adapter_model.safetensors").is_file()
    assert len(RunFolder(tmp_path / "run").read_metrics_csv()) >= 12


def test_waiting_is_bounded_by_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without W&B everything waits, is tried again after a while, and is sent in order."""
    from lightning.pytorch.loggers import WandbLogger

    from callbacks.wandb_logger import RunWandbLogger

    sent: list[tuple[dict[str, float], int]] = []
    away = [True]

    def send(self: Any, metrics: dict[str, float], step: int) -> None:
        if away[0]:
            raise ConnectionResetError("gone")
        sent.append((metrics, step))

    monkeypatch.setattr(WandbLogger, "log_metrics", send)
    monkeypatch.setattr(RunWandbLogger, "_start_anew", lambda self: None)
    logger = RunWandbLogger(retry_seconds=1e9, project="x")
    for step in range(3):
        logger.log_metrics({"a": float(step)}, step)
    away[0] = False
    logger.log_metrics({"a": 3.0}, 3)
    assert sent == []  # not yet time to try again
    logger.retry_seconds = 0.0
    logger.log_metrics({"a": 4.0}, 4)
    assert sent == [({"a": float(step)}, step) for step in range(5)]
