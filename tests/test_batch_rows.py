"""Rows taken out of any kind of batch bring the losses that they brought in it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.faults import plain
from datamodules.consensus import Ranking
from datamodules.rows import take_rows
from lightning_modules import FullFT
from lightning_modules.pieces import count_tokens
from tests import test_classifier, test_dpo, test_reward_model
from tests.batches import make_batch, settle


def make(kind: str, t5: str, roberta: str, folder: Path) -> tuple[Any, Any]:
    """Give a module without dropout, and a batch of several rows for it."""
    if kind == "dialogues":
        return settle(FullFT(backbone=t5, dropout=0.0)), make_batch(t5)
    if kind == "comparisons":
        return settle(test_dpo.make_module(t5)), test_dpo.make_batch(test_dpo.make_data(t5, folder))
    tests: Any = {"labels": test_classifier, "rankings": test_reward_model}[kind]
    data = tests.make_data(roberta, folder)
    data.setup("validate")
    return settle(tests.make_module(roberta)).eval(), data.collate(data.splits["validation"])


@pytest.mark.parametrize("kind", ["dialogues", "comparisons", "labels", "rankings"])
def test_the_losses_of_rows_add_up(kind: str, t5: str, roberta: str, tmp_path: Path) -> None:
    module, batch = make(kind, t5, roberta, tmp_path)
    rows = len(batch["ids"])
    assert rows > 2
    whole, count = module.sum_losses(batch)
    parts = [take_rows(batch, *cut) for cut in ((0, 1), (1, rows - 1), (rows - 1, rows))]
    assert [name for part in parts for name in part["ids"]] == batch["ids"]
    assert sum(map(count_tokens, parts)) == count_tokens(batch) > 0
    losses = [module.sum_losses(part) for part in parts]
    assert float(sum(loss for loss, _ in losses)) == pytest.approx(float(whole), rel=1e-5)
    assert int(sum(number for _, number in losses)) == int(count)
    described = module.describe_rows(batch)
    assert [row["id"] for row in described] == batch["ids"]
    torch.save(plain(dict(batch)), tmp_path / "batch.pt")
    again = torch.load(tmp_path / "batch.pt", weights_only=True)
    if "rankings" in again:
        again["rankings"] = [Ranking(**ranking) for ranking in again["rankings"]]
    assert torch.equal(module.sum_losses(again)[0], whole)
