"""RunCheckpoint's constraint: the best of the validations in which nothing has fallen too far."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.checkpoint import RunCheckpoint
from callbacks.export import ExportCallback
from callbacks.resume import ExactResume
from callbacks.validation import ValidateAtStart
from common.run_folder import RunFolder
from tests.tiny_run import TinyModule, loader, make_trainer

FALLS = {"val/rouge1": 0.01}
START = 0.6


class Told(L.Callback):
    """Logs what the test says that each validation found, the one of the start included."""

    def __init__(self, toxicity: list[float], rouge1: list[float]) -> None:
        self.values = list(zip(toxicity, rouge1, strict=True))
        self.seen = 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        toxicity, rouge1 = self.values[self.seen]
        self.seen += 1
        pl_module.log_dict({"val/toxicity": toxicity, "val/rouge1": rouge1})

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


def run(
    folder: Path, told: Told, epochs: int, resume: bool = False, every: float = 0.5,
    falls: dict[str, float] | None = FALLS,
) -> tuple[float, float]:  # fmt: skip
    """Fit with two steps an epoch and a validation after each, or after each epoch.

    Returns:
        The best score and the steps behind the exported weights (each step goes a fifth of the way
        from 0 to 1).
    """
    checkpoints = RunFolder(folder).checkpoints
    keep = RunCheckpoint(
        checkpoints, monitor="val/toxicity", mode="min", falls=falls, filename="best",
        save_last=True, enable_version_counter=False,
    )  # fmt: skip
    trainer = make_trainer(
        folder, ExactResume(), ValidateAtStart(), told, keep, ExportCallback(), max_epochs=epochs,
        val_check_interval=every, num_sanity_val_steps=1, enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(
        TinyModule(), loader(), loader(),
        ckpt_path=checkpoints / "last.ckpt" if resume else None, weights_only=True,
    )  # fmt: skip
    assert keep.best_model_score is not None
    weight = float((RunFolder(folder).export / "weight.txt").read_text())
    steps = torch.log(torch.tensor(1 - weight)) / torch.log(torch.tensor(0.8))
    return round(float(keep.best_model_score), 6), round(float(steps))


# Toxicity falls all the time. The first value of each is the dry run's, which counts for nothing.
@pytest.mark.parametrize(
    ("rouge1", "best"),
    [
        ([START, 0.595, 0.585, 0.592, 0.580], (0.2, 3)),  # the last one that is within 0.01
        ([START, 0.595, 0.589, 0.589, 0.589], (0.4, 1)),
        ([START, 0.7, 0.7, 0.7, 0.592], (0.1, 4)),  # counted from the first, not from the highest
        ([START, 0.5, 0.5, 0.5, float("nan")], (0.5, 0)),  # where all have fallen, the start stays
    ],
)
def test_the_best_of_those_that_have_not_fallen(
    rouge1: list[float], best: tuple[float, float], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    toxicity = [0.0, 0.5, 0.4, 0.3, 0.2, 0.1]
    with caplog.at_level(logging.INFO, "callbacks.checkpoint"):
        assert run(tmp_path / "run", Told(toxicity, [0.0, *rouge1]), 2) == best
    refused = [r.getMessage() for r in caplog.records if "not to be the best" in r.getMessage()]
    assert len(refused) == sum(not one >= START - 0.01 for one in rouge1)
    free = run(tmp_path / "free", Told(toxicity, [0.0, *rouge1]), 2, falls=None)
    assert free == (0.1, 4)


def test_a_metric_that_has_fallen_just_so_far_may_be_best(tmp_path: Path) -> None:
    told = Told([0.0, 0.5, 0.4, 0.3], [0.0, 0.75, 0.5, 0.25])
    assert run(tmp_path, told, 1, falls={"val/rouge1": 0.25}) == (0.4, 1)


def test_a_validation_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    told = Told([0.0, 0.5, 0.4, 0.3], [0.0, START, 0.595, 0.5])
    assert run(tmp_path, told, 2, every=1.0) == (0.4, 2)


def test_a_resumed_run_falls_from_where_it_began(tmp_path: Path) -> None:
    """0.585 is within 0.01 of what the resumed part sees first, but not of the start."""
    toxicity, rouge1 = [0.0, 0.5, 0.4, 0.3, 0.2, 0.1], [0.0, START, 0.591, 0.591, 0.585, 0.585]
    assert run(tmp_path / "whole", Told(toxicity, rouge1), 2) == (0.3, 2)
    told = Told(toxicity, rouge1)
    assert run(tmp_path / "parts", told, 1) == (0.3, 2)
    assert run(tmp_path / "parts", told, 2, resume=True) == (0.3, 2)
    states = [
        torch.load(RunFolder(tmp_path / name).checkpoints / "last.ckpt", weights_only=True)
        for name in ("whole", "parts")
    ]
    first, second = (
        {
            key: value
            for name, state in checkpoint["callbacks"].items() if "RunCheckpoint" in name
            for key, value in state.items() if key in ("falls", "first_validation")
        }
        for checkpoint in states
    )  # fmt: skip
    assert first == second == {
        "falls": FALLS, "first_validation": {"val/rouge1": pytest.approx(START)}
    }  # fmt: skip


def test_another_constraint_is_refused_when_a_run_is_resumed(tmp_path: Path) -> None:
    told = Told([0.0, 0.5, 0.4, 0.3], [0.0, START, START, START])
    run(tmp_path, told, 1)
    with pytest.raises(ValueError, match=r"falls was \{'val/rouge1': 0.01\} .* and is \{\} now"):
        run(tmp_path, told, 2, resume=True, falls=None)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint: falls must be 0 or more, got val/rouge1 -1"):
        RunCheckpoint(tmp_path, monitor="val/toxicity", mode="min", falls={"val/rouge1": -1})
    with pytest.raises(ValueError, match=r"nothing is monitored; set checkpoint.monitor"):
        RunCheckpoint(tmp_path, falls=FALLS)
    with pytest.raises(
        ValueError, match=r"checkpoint: falls names val/judge, .* logged were: val/"
    ):
        run(tmp_path, Told([0.0, 0.5], [0.0, START]), 1, falls={"val/judge": 0.1})
