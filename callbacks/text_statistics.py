"""Length, novelty and copying of generated summaries."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback, measure
from metrics.text_statistics import STATISTICS


class TextStatisticsCallback(TextMetricCallback):
    """Log the means of `metrics.text_statistics` as `test/words`, `test/novelty2` and so on.

    They explain scores: training that makes summaries longer raises recall, and a model that copies
    whole turns of the dialogue has a high `copy_density`.
    """

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Measure the texts."""
        return measure(STATISTICS, texts, rows)
