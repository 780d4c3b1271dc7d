"""The overlays of trackers, each in a run of its own; nothing leaves the machine."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from alignsum.option_check import prepare
from alignsum.overlays import expand_short_options

ROOT = Path(__file__).parents[1]


def fit(overlay: str, folder: Path, *more: str) -> None:
    configs = [ROOT / "configs" / name for name in ("lora.yaml", "overlays/mini.yaml", overlay)]
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    options = [f"--trainer.{name}={value}" for name, value in limits.items()]
    given = [word for config in configs for word in ("--config", str(config))]
    fixed = ["--trainer.log_every_n_steps", "1", "--run_dir", str(folder / "lora")]
    train.main(["fit", *given, *options, *fixed, *more])


def test_weights_and_biases_gets_curves_samples_and_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    fit("overlays/wandb.yaml", tmp_path)
    wandb.finish()
    wandb.teardown()  # waits until its process has written the file
    (record,) = (tmp_path / "runs" / "wandb").rglob("*.wandb")
    # A record may continue in the next block of 32 KiB, after a header of seven bytes.
    file = record.read_bytes()
    content = b"".join(file[k and k + 7 : k + 32768] for k in range(0, len(file), 32768))
    for name in (b"train/loss", b"val/rouge1", b"val/samples", b"lora-export", b"model"):
        assert name in content, name
    assert b"adapter_model.safetensors" in content


def test_tensorboard_gets_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    fit("overlays/tensorboard.yaml", tmp_path)
    (folder,) = (tmp_path / "runs" / "tensorboard" / "alignsum").iterdir()
    events: Any = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "val/rouge1"} <= set(events.Tags()["scalars"])
    assert [each.step for each in events.Scalars("train/loss")] == [1, 2]


def test_mlflow_gets_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    fit("overlays/mlflow.yaml", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = {name for (name,) in database.execute("select key from metrics")}
    assert {"train/loss", "val/rouge1"} <= found


def test_the_sweep_file_makes_commands_that_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    chosen = {
        name: entry.get("values", [entry.get("min")])[0]
        for name, entry in sweep["parameters"].items()
    }
    words = [word for word in sweep["command"] if not word.startswith("${")]
    arguments = [*words, *(f"--{name}={value}" for name, value in chosen.items())]
    prepared = prepare(expand_short_options(arguments))
    assert prepared[0] == "fit" and "--model.r=8" in prepared
    assert sweep["metric"]["name"].startswith("val/") and Path(sweep["program"]).is_file()
