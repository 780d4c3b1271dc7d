"""A few generated texts, for people to read."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import rich
from lightning.pytorch.loggers import WandbLogger
from rich.markup import escape
from rich.table import Table

from callbacks.text_metric import Row, TextCollector, gather_rows
from common.run_folder import RunFolder, write_lines

SHOWN_CHARS = 300


class SampleTexts(TextCollector):
    """Show and keep the same few examples at each validation and test.

    They go to samples.jsonl with stage and step, to the terminal as a table, and to Weights &
    Biases as a table if its logger is used.

    Args:
        count: Number of examples, the first ones of the split; 0 shows none.
    """

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        if count < 0:
            raise ValueError(f"samples.count must be 0 or more, got {count}")
        self.count = count

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the samples of a validation."""
        if not trainer.sanity_checking:
            self._show(trainer, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the samples of a test."""
        self._show(trainer, "test")

    def _show(self, trainer: L.Trainer, stage: str) -> None:
        first = sorted(self.rows, key=lambda row: row["index"])[: self.count]
        rows = gather_rows(first)[: self.count]
        self.rows = []
        if not trainer.is_global_zero or not rows:
            return
        place = {"stage": stage, "step": trainer.global_step}
        path = RunFolder(trainer.default_root_dir).samples
        # A resumed run may repeat a validation.
        others = [row for row in read_samples(path) if not place.items() <= row.items()]
        write_lines(path, [*others, *(place | row for row in rows)])
        rich.get_console().print(make_table(rows, f"{stage} samples at step {trainer.global_step}"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                data: list[list[Any]] = [[to_cell(value) for value in row.values()] for row in rows]
                logger.log_text(f"{stage}/samples", columns=list(rows[0]), data=data)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read samples.jsonl; empty if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_table(rows: list[Row], title: str) -> Table:
    """Lay samples out for a terminal: reference, text before training if known, prediction."""
    with_before = "prediction_before" in rows[0]
    table = Table(title=title, show_lines=True, title_justify="left")
    for name in ("id", "reference", *(["before"] if with_before else []), "prediction"):
        table.add_column(name, ratio=None if name == "id" else 1, overflow="fold")
    for row in rows:
        before = [row["prediction_before"]] if with_before else []
        texts = [str(row["id"]), row["references"][0], *before, row["prediction"]]
        table.add_row(*(escape(shorten(text)) for text in texts))
    return table


def shorten(text: str) -> str:
    """Cut a text that is too long for a table."""
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def to_cell(value: Any) -> Any:
    """Write a list of references as lines of one cell."""
    return "\n".join(value) if isinstance(value, list) else value
