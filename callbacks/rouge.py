"""ROUGE of generated summaries."""

import lightning as L

from callbacks.text_metric import Row, TextMetricCallback, add_scores, all_gather
from metrics.rouge import Rouge


class RougeCallback(TextMetricCallback):
    """Log `val/rouge{1,2,L,Lsum}` and `test/...` likewise, as fractions of 1.

    With several references a value is the mean over them, and `<key>_best` the best of them.

    Args:
        use_stemmer: Compare Porter stems instead of words.
    """

    def __init__(self, use_stemmer: bool = True) -> None:
        super().__init__()
        self.use_stemmer = use_stemmer

    def gather_scores(self, pl_module: L.LightningModule, rows: list[Row]) -> list[Row]:
        """Score this rank's texts, those from before training too, and gather all values."""
        gathered = all_gather(rows)
        columns: dict[str, list[float]] = {}
        for text, suffix in (("prediction", ""), ("prediction_before", "_before")):
            if gathered and text in gathered[0]:
                rouge = Rouge(self.use_stemmer)
                if pl_module.trainer.world_size > 1:
                    rouge.to(pl_module.device)  # NCCL gathers nothing from the CPU
                rouge.update([row[text] for row in rows], [row["references"] for row in rows])
                columns |= {name + suffix: each for name, each in rouge.per_example().items()}
        return add_scores(gathered, columns)
