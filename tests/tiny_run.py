"""A tiny module and data, for fast runs of a Trainer with real callbacks."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

ROWS = [
    {
        "id": f"row-{i}",
        "dialogue": f"#Person1#: number {i}",
        "references": ["the cat sat on the mat"],
    }
    for i in range(4)
]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "index": torch.tensor([int(row["id"].split("-")[1]) for row in rows]),
        "ids": [row["id"] for row in rows],
        "dialogues": [row["dialogue"] for row in rows],
        "references": [row["references"] for row in rows],
    }


def loader(rows: list[dict[str, Any]] | None = None, order: list[int] | None = None) -> DataLoader:
    rows = rows or ROWS
    order = order or list(range(len(rows)))
    return DataLoader([rows[i] for i in order], batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


class TinyModule(L.LightningModule):
    """Return the same text for each dialogue; one trained and two frozen weights."""

    def __init__(self, text: str = "the cat sat", before: str | None = None) -> None:
        super().__init__()
        self.text = text
        self.before = before
        self.backbone_name = "tiny"
        self.strict_loading = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = (self.weight - 1).square().sum()
        self.log("train/loss", loss, batch_size=2)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self._texts(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        outputs = self._texts(batch, "test")
        if self.before is not None:
            outputs["predictions_before"] = [self.before] * len(batch["ids"])
        return outputs

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return [self.text] * len(batch["ids"])

    def _texts(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        loss = (self.weight - 1).square().sum()
        self.log(f"{stage}/loss", loss, batch_size=2)
        return {"loss": loss, "predictions": [self.text] * len(batch["ids"])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["state_dict"]["frozen"]

    def count_parameters(self) -> tuple[int, int]:
        return 1, 3

    def export(self, path: str | Path) -> dict[str, Any]:
        Path(path).mkdir()
        Path(path, "weight.txt").write_text(repr(self.weight.item()))
        return {}


def make_trainer(run_dir: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(default_root_dir=run_dir, callbacks=list(callbacks), **(defaults | settings))
