import csv
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
)
from torch.utils.data import DataLoader

from callbacks import default_callbacks
from callbacks.checkpoint import RunCheckpoint
from callbacks.checkpoint_io import RESUME, choose_checkpoint
from callbacks.export import ExportCallback
from callbacks.loggers import RunCSVLogger, StepAxis
from callbacks.plots import PlotCallback
from callbacks.rouge import RougeCallback
from callbacks.samples import SampleTexts
from callbacks.summary import SummaryCallback
from common.run_folder import RunFolder
from tests.tiny_run import TinyModule, loader, make_trainer


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# RunCSVLogger -----------------------------------------------------------------------------------


def test_csv_grows_columns_and_keeps_what_is_there(tmp_path: Path) -> None:
    RunCSVLogger(str(tmp_path)).log_metrics({"train/loss": 2.0}, step=0)
    again = RunCSVLogger(str(tmp_path))  # as a test after its fit in another process
    again.log_metrics({"train/loss": torch.tensor(1.0)}, step=1)
    again.log_metrics({"val/loss": 3.0}, step=1)
    assert read_csv(tmp_path) == [
        {"step": "0", "train/loss": "2.0", "val/loss": ""},
        {"step": "1", "train/loss": "1.0", "val/loss": ""},
        {"step": "1", "train/loss": "", "val/loss": "3.0"},
    ]


def test_csv_of_a_resumed_run_has_each_row_once(tmp_path: Path) -> None:
    logger = RunCSVLogger(str(tmp_path))
    for step in range(3):
        logger.log_metrics({"train/loss": float(step), "epoch": 0}, step)
    logger.log_metrics({"lr": 0.1}, 2)
    logger.log_metrics({"val/loss": 3.5, "epoch": 0}, 2)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # a kill cut off the row of step 10
    again = RunCSVLogger(str(tmp_path))
    again.rewind(2, step=2)  # written before the metrics of its step were logged
    rows = [(row["step"], row["train/loss"], row["lr"]) for row in read_csv(tmp_path)]
    assert rows == [("0", "0.0", ""), ("1", "1.0", ""), ("2", "2.0", "")]


def test_step_is_the_number_of_optimizer_steps_for_all_loggers(tmp_path: Path) -> None:
    class TwoSteps(TinyModule):
        automatic_optimization = False

        def training_step(self, batch: dict, batch_idx: int) -> None:
            for _ in range(2):
                loss = (self.weight - 1).square().sum()
                self.manual_backward(loss)
                self.optimizers().step()
                self.optimizers().zero_grad()
            self.log("train/loss", loss.detach())

    logger = RunCSVLogger(str(tmp_path))
    trainer = make_trainer(tmp_path, StepAxis(), SummaryCallback(), logger=logger)
    trainer.fit(TwoSteps(), loader(), loader())
    rows = read_csv(tmp_path)
    kinds = [
        (int(row["step"]), "train" if row["train/loss"] else "val", row["epoch"]) for row in rows
    ]
    first = [(2, "train", "0"), (4, "train", "0"), (4, "val", "0")]
    assert kinds == [*first, (6, "train", "1"), (8, "train", "1"), (8, "val", "1")]
    assert not {"step", "epoch"} & RunFolder(tmp_path).read_summary()["metrics"].keys()


# RunCheckpoint ----------------------------------------------------------------------------------


def checkpointed(folder: Path, **settings: Any) -> tuple[TinyModule, RunCheckpoint]:
    keep = RunCheckpoint("val/loss", "min", every_n_train_steps=1)
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = make_trainer(
        folder, StepAxis(), keep, logger=RunCSVLogger(str(folder)), enable_checkpointing=True,
        **settings,
    )  # fmt: skip
    module = TinyModule()
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return module, keep


def test_best_score_survives_a_moved_run_folder(tmp_path: Path) -> None:
    checkpointed(tmp_path / "a", max_epochs=1)
    (tmp_path / "a").rename(tmp_path / "b")
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"

    class Worse(RunCheckpoint):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.callback_metrics["val/loss"].fill_(9.0)
            super().on_validation_end(trainer, pl_module)

    keep = Worse("val/loss", "min")
    trainer = make_trainer(tmp_path / "b", keep, enable_checkpointing=True)
    trainer.fit(TinyModule(), loader(), loader(), ckpt_path=last, weights_only=True)
    assert keep.best_model_path == str(tmp_path / "b" / "checkpoints" / "best.ckpt")
    assert float(keep.best_model_score) == pytest.approx(0.64**2)
    best = torch.load(keep.best_model_path, weights_only=True)
    assert best["global_step"] == 2


def test_best_checkpoint_within_an_accumulated_step_is_not_resumed_from(tmp_path: Path) -> None:
    checkpointed(tmp_path, accumulate_grad_batches=2, val_check_interval=1, max_epochs=1)
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").unlink()
    (folder / "previous.ckpt").unlink(missing_ok=True)
    best = torch.load(folder / "best.ckpt", weights_only=True)
    torch.save(best | {RESUME: {"exact": False}}, folder / "best.ckpt")
    path, problems = choose_checkpoint("auto", folder)
    assert path is None
    assert "in the middle of an optimizer step" in problems[-1]


# SummaryCallback --------------------------------------------------------------------------------


def test_summary_of_a_fit_and_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--x", "a b"])
    trainer = make_trainer(tmp_path, SummaryCallback(), RougeCallback())
    trainer.fit(TinyModule(), loader(), loader())
    fit = RunFolder(tmp_path).read_summary()
    assert fit["command"] == "python train.py fit --x 'a b'"
    assert fit["seed"] == 7
    assert fit["backbone"] == "tiny"
    assert fit["method"] == "tiny_module"
    assert fit["parameters"] == {"trainable": 1, "total": 3}
    assert fit["measured"] == "fit"
    assert fit["peak_memory_kind"] == "process resident set"
    assert fit["peak_memory_bytes"] > 50e6  # torch alone takes more
    assert fit["versions"]["torch"] == torch.__version__
    # The weight goes 0, 0.2, 0.36, 0.488, 0.5904 by SGD: loss after the last step 0.16777.
    assert fit["metrics"]["val/loss"] == {
        "value": pytest.approx((1 - 0.5904) ** 2), "n": None, "low": None, "high": None,
    }  # fmt: skip
    assert fit["metrics"]["val/rouge1"]["n"] == 4

    assert SummaryCallback(["python", "train.py", "fit"]).command == "python train.py fit"
    monkeypatch.setattr("sys.argv", ["train.py", "test"])
    trainer.test(TinyModule(), loader(), verbose=False)
    both = RunFolder(tmp_path).read_summary()
    same = ("command", "seconds", "peak_memory_bytes", "parameters", "measured")
    assert {key: both[key] for key in same} == {key: fit[key] for key in same}
    assert both["test_seconds"] >= 0
    assert both["metrics"]["test/rouge1"]["n"] == 4
    assert both["metrics"]["test/loss"]["value"] == 1
    assert both["metrics"]["val/rouge1"] == fit["metrics"]["val/rouge1"]


def test_summary_of_a_resumed_run_adds_up(tmp_path: Path) -> None:
    before = {"seconds": 1000.0, "peak_memory_bytes": 10**15, "metrics": {"val/early": 0.5}}
    callback = SummaryCallback()
    callback.load_state_dict(before)
    make_trainer(tmp_path, callback).fit(TinyModule(), loader(), loader())
    summary = RunFolder(tmp_path).read_summary()
    assert summary["seconds"] > 1000
    assert summary["peak_memory_bytes"] == 10**15
    assert summary["metrics"]["val/early"]["value"] == 0.5
    assert summary["metrics"]["val/loss"]["value"] < 0.5


class DescribedData(L.LightningDataModule):
    """Describes each split that it was set up for."""

    def __init__(self) -> None:
        super().__init__()
        self.splits: dict[str, Any] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    test_dataloader = train_dataloader

    def setup(self, stage: str) -> None:
        self.splits["train" if stage == "fit" else stage] = {"rows": 4}

    def describe(self) -> dict[str, Any]:
        return self.splits


def test_summary_without_training_has_the_data_and_the_cost_of_the_test(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    make_trainer(tmp_path, SummaryCallback(), max_epochs=0).fit(
        TinyModule(), datamodule=DescribedData()
    )
    assert "seconds" not in folder.read_summary()
    for weight in (0.0, 1.0):  # the second test replaces the metrics of the first
        module = TinyModule()
        module.weight.data.fill_(weight)
        tester = make_trainer(tmp_path, SummaryCallback())
        tester.test(module, datamodule=DescribedData(), verbose=False)
    summary = folder.read_summary()
    assert summary["data"] == {"train": {"rows": 4}, "test": {"rows": 4}}
    assert summary["measured"] == "test"
    assert summary["seconds"] == summary["test_seconds"]
    assert summary["metrics"]["test/loss"]["value"] == 0


# ExportCallback ---------------------------------------------------------------------------------


def test_export_is_of_the_best_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Worsening(TinyModule):
        def validation_step(self, batch: dict, batch_idx: int) -> dict:
            self.log("val/score", -self.weight.detach(), batch_size=2)
            return super().validation_step(batch, batch_idx)

    caplog.set_level(logging.INFO)
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/score", mode="max")
    module = Worsening()
    trainer = make_trainer(tmp_path, best, ExportCallback(), enable_checkpointing=True)
    trainer.fit(module, loader(), loader())
    # After the first epoch's two steps the weight is 0.36, and the score falls from there on.
    assert float((tmp_path / "export" / "weight.txt").read_text()) == pytest.approx(0.36)
    assert module.weight.item() == pytest.approx(0.36)
    assert "best checkpoint" in caplog.text
    assert "val/score -0.36" in caplog.text


def test_test_exports_only_what_is_missing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ExportCallback())
    trainer.test(TinyModule(), loader(), verbose=False)
    assert (tmp_path / "export" / "weight.txt").read_text() == "0.0"
    (tmp_path / "export" / "weight.txt").write_text("of the fit")
    trainer.test(TinyModule(), loader(), verbose=False)
    assert (tmp_path / "export" / "weight.txt").read_text() == "of the fit"


def test_failed_export_leaves_the_old_one_whole(tmp_path: Path) -> None:
    class Failing(TinyModule):
        def export(self, path: str | Path) -> None:
            super().export(path)
            raise OSError("disk full")

    make_trainer(tmp_path, ExportCallback()).fit(TinyModule(), loader())
    names = ["README.md", "weight.txt"]
    with pytest.raises(OSError, match="disk full"):
        make_trainer(tmp_path, ExportCallback()).fit(Failing(), loader())
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == names
    make_trainer(tmp_path, ExportCallback(), max_epochs=1).fit(TinyModule(), loader())
    assert float((tmp_path / "export" / "weight.txt").read_text()) == pytest.approx(0.36)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


# PlotCallback -----------------------------------------------------------------------------------


def test_plots_of_a_real_run(tmp_path: Path) -> None:
    logger = RunCSVLogger(str(tmp_path))
    trainer = make_trainer(tmp_path, RougeCallback(), PlotCallback(), logger=logger)
    trainer.fit(TinyModule(), loader(), loader())
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["learning_curves.png"]
    trainer.test(TinyModule(), loader(), verbose=False)
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["learning_curves.png", "rouge_per_example.png"]
    assert (tmp_path / "plots" / "rouge_per_example.png").read_bytes()[:4] == b"\x89PNG"


# Defaults ---------------------------------------------------------------------------------------


def test_caller_replaces_default_callbacks() -> None:
    own = [SampleTexts(count=1), RichProgressBar(), RunCheckpoint("val/loss", "min")]
    found = default_callbacks(own)
    for kind in (SampleTexts, ProgressBar, RunCheckpoint):
        assert [each for each in found if isinstance(each, kind)] == [
            each for each in own if isinstance(each, kind)
        ]
    bare = default_callbacks(generates=False, checkpointing=False, progress_bar=False)
    assert {type(each).__name__ for each in bare} == {
        "GracefulStop", "StepAxis", "SummaryCallback", "ExportCallback", "PlotCallback",
        "ClosingWords",
    }  # fmt: skip


def test_summary_is_json_that_others_can_read(tmp_path: Path) -> None:
    class Infinite(TinyModule):
        def validation_step(self, batch: dict, batch_idx: int) -> dict:
            self.log("val/ratio", torch.tensor(float("inf")), batch_size=2)
            return super().validation_step(batch, batch_idx)

    make_trainer(tmp_path, SummaryCallback()).fit(Infinite(), loader(), loader())
    text = RunFolder(tmp_path).summary.read_text()
    assert "Infinity" not in text
    assert "val/ratio" not in json.loads(text)["metrics"]
