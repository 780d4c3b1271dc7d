"""Toxicity and reward of generated texts, as a frozen classifier sees them."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback, score_texts
from lightning_modules.reward_model import RewardScorer
from metrics.intervals import Estimate


class ToxicityCallback(TextMetricCallback):
    """Log `test/toxicity` (mean probability of the toxic label) and `test/reward` (mean raw logit).

    The generated text alone is scored: with the dialogue in front, the score would mostly be the
    dialogue's. Where the module gives texts of before training too, `test/toxicity_before`,
    `test/toxicity_after` and the paired `test/toxicity_change` are recorded, and the reward's
    likewise. In validation `val/toxicity` and `val/reward` are logged.

    Args:
        model: Hub id, folder or `mini`: a sequence classifier; None scores no toxicity. It may be
            another one than PPO was trained against, which shows whether the policy only learned
            to please its own reward.
        batch_size: Texts in one forward pass.
        label: The label whose raw logit is the reward.
        toxic_label: The label whose probability is the toxicity.
    """

    def __init__(
        self,
        model: str | None = None,
        batch_size: int = 64,
        label: str = "nothate",
        toxic_label: str = "hate",
    ) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.label = label
        self.toxic_label = toxic_label
        self._scorer: RewardScorer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the classifier, so that a wrong name is known before any work."""
        if self._scorer is None and self.model is not None:
            self._scorer = RewardScorer(self.model, self.label, self.batch_size).eval()
            self._scorer.find_column(self.toxic_label)

    def score(self, pl_module: L.LightningModule, rows: Sequence[Row]) -> Columns:
        """Score the rows' predictions, and those of before where there are any."""
        if self.model is None:
            return {}
        if self._scorer is None:
            raise RuntimeError("ToxicityCallback.setup has not run; a Trainer calls it.")
        scorer = self._scorer.to(pl_module.device)
        return score_texts(rows, lambda texts: scorer.rate(texts, self.toxic_label))

    def estimates(self, columns: Columns) -> dict[str, Estimate]:
        """Add "<name>_after", the same number as "<name>", beside each "<name>_before"."""
        found = super().estimates(columns)
        paired = [name for name in columns if f"{name}_before" in columns]
        return found | {f"{name}_after": found[name] for name in paired}
