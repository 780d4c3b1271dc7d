"""ROUGE of generated summaries."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback, score_texts
from metrics.rouge import score_rouge
from metrics.words import BEST


class RougeCallback(TextMetricCallback):
    """Log `val/rouge{1,2,L,Lsum}` and `test/...` likewise, as fractions of 1.

    With several references a value is the mean over them, and `<key>_best` the best of them.

    Args:
        use_stemmer: Compare Porter stems instead of words.
    """

    def __init__(self, use_stemmer: bool = True) -> None:
        super().__init__()
        self.use_stemmer = use_stemmer

    def score(self, pl_module: L.LightningModule, rows: Sequence[Row]) -> Columns:
        """Score the rows' predictions, and the texts before training if there are any."""
        references = [row["references"] for row in rows]
        # Also "_best" without several references: another rank may have some.
        return score_texts(
            rows, lambda texts: score_rouge(texts, references, self.use_stemmer, with_best=True)
        )

    def finish(self, rows: Sequence[Row], columns: Columns) -> Columns:
        """Drop "_best" if no row has several references: it would be the same numbers."""
        if any(len(row["references"]) > 1 for row in rows):
            return columns
        return {name: values for name, values in columns.items() if BEST not in name}
