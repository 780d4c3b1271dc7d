"""ROUGE of generated summaries."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback
from metrics.rouge_scores import BEST, score_rouge


class RougeCallback(TextMetricCallback):
    """Log `val/rouge{1,2,L,Lsum}` and `test/...` likewise, as fractions of 1.

    With several references a value is the mean over them, and `<key>_best` the best of them.

    Args:
        use_stemmer: Compare Porter stems instead of words.
    """

    def __init__(self, use_stemmer: bool = True) -> None:
        super().__init__()
        self.use_stemmer = use_stemmer

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Score the texts against the references of their rows."""
        references = [row["references"] for row in rows]
        return score_rouge(texts, references, self.use_stemmer, with_best=True)

    def score_rows(self, pl_module: L.LightningModule) -> tuple[list[Row], Columns]:
        """Keep `<key>_best` only if a row on any rank has several references."""
        rows, columns = super().score_rows(pl_module)
        several = any(len(row["references"]) > 1 for row in rows)
        return rows, {name: each for name, each in columns.items() if several or BEST not in name}
