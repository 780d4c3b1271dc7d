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


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1.0] * 8),
        ("linear", [1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ],
)
def test_ten_steps_with_two_of_warm_up(
    schedule: str, after: list[float], t5: str, tmp_path: Path
) -> None:
    # From 0: two steps of warm-up, and the highest rate with the third.
    found = rates(t5, tmp_path, schedule=schedule, warmup_fraction=0.2)
    assert found == [0.0, 0.5, *after]


def test_without_warm_up_the_first_step_has_the_full_rate(t5: str, tmp_path: Path) -> None:
    assert rates(t5, tmp_path) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_the_schedule_counts_optimizer_steps_and_not_batches(t5: str, tmp_path: Path) -> None:
    # 5 batches an epoch in twos are 3 steps, the last of one batch.
    found = rates(t5, tmp_path, accumulate=2, warmup_fraction=1 / 3)
    assert found == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
