"""The learning rate of every step, against values worked out by hand."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_modules import FullFT
from tests.batches import loader, make_batch, make_trainer


class Rates(L.Callback):
    """Keeps the learning rate that each step is taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates(t5: str, folder: Path, batches: int = 5, accumulate: int = 1, **settings: Any) -> Any:
    """The rates of two epochs, as shares of the highest."""
    module = FullFT(t5, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5), **settings)
    watch = Rates()
    trainer = make_trainer(
        folder, max_epochs=2, callbacks=[watch], accumulate_grad_batches=accumulate
    )
    trainer.fit(module, loader(*[make_batch(t5, 1)] * batches))
    return pytest.approx([rate / 0.5 for rate in watch.seen])


WARM = [0.0, 0.5]
"""Two steps of warm-up: the rate rises from 0, and is at its highest with the third."""


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1.0] * 8),
        ("linear", [1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ],
)
@pytest.mark.parametrize("warmup", [{"warmup_steps": 2}, {"warmup_fraction": 0.2}], ids=str)
def test_ten_steps_with_two_of_warm_up(
    schedule: str, after: list[float], warmup: dict[str, Any], t5: str, tmp_path: Path
) -> None:
    assert rates(t5, tmp_path, schedule=schedule, **warmup) == WARM + after


def test_without_warm_up_the_first_step_has_the_full_rate(t5: str, tmp_path: Path) -> None:
    assert rates(t5, tmp_path) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_the_schedule_counts_optimizer_steps_and_not_batches(t5: str, tmp_path: Path) -> None:
    # 5 batches an epoch in twos are 3 steps, the last of one batch.
    found = rates(t5, tmp_path, accumulate=2, warmup_steps=2)
    assert found == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]


def test_a_warm_up_that_outlasts_the_fit_is_told(
    t5: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert rates(t5, tmp_path, batches=1, warmup_steps=4) == [0.0, 0.25]
    assert "warmup_steps 4" in caplog.text


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": -1}, {"warmup_steps": 2, "warmup_fraction": 0.1}]
)
def test_a_warm_up_is_given_one_way(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="warmup_fraction"):
        FullFT("x", **settings)
