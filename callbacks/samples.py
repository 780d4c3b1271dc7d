"""A few generated texts, to be read by people."""

import json
import logging
from typing import Any

import lightning as L
import rich
from lightning.pytorch.loggers import WandbLogger
from rich.markup import escape
from rich.table import Table

from callbacks.text_metric import Row, TextCollector, gather_rows
from common.run_folder import RunFolder

log = logging.getLogger(__name__)

_SHOWN_CHARS = 300


class SampleTexts(TextCollector):
    """Show and keep the same few examples at each validation and test.

    They are appended to samples.jsonl with the stage and step, shown as a table in the terminal,
    and sent to Weights & Biases as a table where its logger is in use.

    Args:
        count: Number of examples, the first ones of the split; 0 shows none.
    """

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        if count < 0:
            raise ValueError(f"SampleTexts: count must be 0 or more, got {count}.")
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
        step = trainer.global_step
        folder = RunFolder(trainer.default_root_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.samples.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(
                    json.dumps({"stage": stage, "step": step} | row, ensure_ascii=False) + "\n"
                )
        rich.get_console().print(make_table(rows, f"{stage} samples at step {step}"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                columns = list(rows[0])
                data: list[list[Any]] = [[_flat(row[column]) for column in columns] for row in rows]
                logger.log_text(f"{stage}/samples", columns=columns, data=data)


def make_table(rows: list[Row], title: str) -> Table:
    """Lay samples out for a terminal: reference, text of before where there is one, prediction."""
    with_before = "prediction_before" in rows[0]
    table = Table(title=title, show_lines=True, title_justify="left")
    for name in ("id", "reference", *(["before"] if with_before else []), "prediction"):
        table.add_column(name, ratio=None if name == "id" else 1, overflow="fold")
    for row in rows:
        before = [row["prediction_before"]] if with_before else []
        texts = [str(row["id"]), row["references"][0], *before, row["prediction"]]
        table.add_row(*(escape(_shorten(text)) for text in texts))
    return table


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _flat(value: Any) -> Any:
    """One cell of a W&B table: a list of references becomes lines."""
    return "\n".join(value) if isinstance(value, list) else value
