"""A few generated texts, for people to read."""

import json

import lightning as L
import rich
from lightning.pytorch.loggers import WandbLogger
from rich.markup import escape
from rich.table import Table

from callbacks.text_metric import Row, RowCollector, gather_rows
from common.run_folder import RunFolder, write_lines

SHOWN_CHARS = 300


class SampleTexts(RowCollector):
    """Show and keep the same few examples at each validation and test.

    They go to samples.jsonl with stage and step, to the terminal as a table, and to Weights &
    Biases as a table if its logger is used.

    Args:
        count: Number of examples, the first ones of the split; 0 shows none.
    """

    def __init__(self, count: int = 3) -> None:
        super().__init__()
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
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # A resumed run may repeat a validation.
        others = [row for row in map(json.loads, lines) if not place.items() <= row.items()]
        write_lines(path, [*others, *(place | row for row in rows)])
        where = f" at step {trainer.global_step}" if stage == "val" else ""
        console, title = rich.get_console(), f"{stage} samples{where}"
        if console.is_terminal:
            console.print(make_table(rows, title))
        else:
            console.print(title)
            for row in rows:
                for name, text in texts_of(row).items():
                    line = f"{row['id']} {name}: {text[:SHOWN_CHARS]}"
                    console.print(line, soft_wrap=True, markup=False, highlight=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                cells = [
                    ["\n".join(cell) if isinstance(cell, list) else cell for cell in row.values()]
                    for row in rows
                ]
                logger.log_text(f"{stage}/samples", columns=list(rows[0]), data=cells)


def texts_of(row: Row) -> dict[str, str]:
    """Return a sample's texts by name: reference, text before training if known, prediction."""
    before = {"before": row["prediction_before"]} if "prediction_before" in row else {}
    return {"reference": row["references"][0]} | before | {"prediction": row["prediction"]}


def make_table(rows: list[Row], title: str) -> Table:
    """Lay samples out for a terminal."""
    texts = [{"id": str(row["id"])} | texts_of(row) for row in rows]
    table = Table(title=title, show_lines=True, title_justify="left")
    for name in texts[0]:
        table.add_column(name, ratio=None if name == "id" else 1, overflow="fold")
    for row in texts:
        table.add_row(*(escape(text[:SHOWN_CHARS]) for text in row.values()))
    return table
