from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.loggers import RunCSVLogger
from callbacks.progress import RunProgress
from callbacks.rouge import RougeCallback
from callbacks.validation import ValidateAtStart
from common.run_folder import RunFolder
from tests.tiny_run import TinyModule, loader, make_trainer


def losses(folder: Path) -> list[tuple[str, float]]:
    rows = RunFolder(folder).read_metrics_csv()
    return [(row["step"], float(row["val/loss"])) for row in rows if row["val/loss"]]


def fit(folder: Path, *callbacks: Any, **settings: Any) -> TinyModule:
    logger = RunCSVLogger(str(folder))
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = make_trainer(folder, *callbacks, logger=logger, **settings)
    module = TinyModule()
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize("sanity", [0, 2])
def test_the_first_validation_is_of_the_start(tmp_path: Path, sanity: int) -> None:
    bar = RunProgress(every_seconds=1e-9)
    module = fit(
        tmp_path, ValidateAtStart(), RougeCallback(), bar,
        num_sanity_val_steps=sanity, enable_progress_bar=True,
    )  # fmt: skip
    # The weight goes 0, 0.2, 0.36, 0.488, 0.5904, and the loss is the square of what is missing.
    assert losses(tmp_path) == [
        ("0", 1.0),
        ("1", pytest.approx(0.64**2)),
        ("3", pytest.approx((1 - 0.5904) ** 2)),
    ]
    assert module.training
    rows = RunFolder(tmp_path).read_metrics_csv()
    assert rows[0]["val/rouge1"]
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]


def test_the_training_is_the_same_without_it(tmp_path: Path) -> None:
    with_it, without = fit(tmp_path / "a", ValidateAtStart()), fit(tmp_path / "b")
    assert with_it.weight == without.weight
    assert losses(tmp_path / "a")[1:] == losses(tmp_path / "b")


def test_a_resumed_run_does_not_start_again(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", save_last=True)
    fit(tmp_path / "a", ValidateAtStart(), keep, max_epochs=1, enable_checkpointing=True)
    assert not (tmp_path / "kept" / "step=0.ckpt").exists()
    fit(tmp_path / "b", ValidateAtStart(), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert len(losses(tmp_path / "b")) == 1


def test_without_validation_it_does_nothing(tmp_path: Path) -> None:
    fit(tmp_path, ValidateAtStart(), limit_val_batches=0)
    assert "val/loss" not in RunFolder(tmp_path).read_metrics_csv()[0]
