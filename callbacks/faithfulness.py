"""Faithfulness of generated summaries to their dialogues."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback, measure
from metrics.faithfulness import CHECKS, find_unknown_speakers
from metrics.names import find_unknown_names


class FaithfulnessCallback(TextMetricCallback):
    """Log the shares of summaries that fail each check of `metrics.faithfulness`.

    `test/unfaithful_speaker` and `test/unfaithful_name` (a speaker or a proper name that the
    dialogue does not have), `test/swapped_speakers` (the references fit better with #Person1# and
    #Person2# exchanged), and `val/...` likewise. predictions.jsonl gets 1.0 or 0.0 for each example
    under these names, and what was found as `unknown_speakers` and `unknown_names`.
    """

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Check the texts against their dialogues and references."""
        for text, row in zip(texts, rows, strict=True):
            row["unknown_speakers"] = find_unknown_speakers(text, row["dialogue"])
            row["unknown_names"] = find_unknown_names(text, row["dialogue"])
        return measure(CHECKS, texts, rows)
