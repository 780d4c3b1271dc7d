"""Toxicity and reward of generated texts, by a frozen classifier."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback
from lightning_modules.reward_scorer import RewardScorer
from metrics.intervals import Estimate
from metrics.toxicity import estimate_toxicity


class ToxicityCallback(TextMetricCallback):
    """Log `test/toxicity` (mean probability of the toxic label) and `test/reward` (mean raw logit).

    Also logged are `test/toxicity_std`, the standard deviation over the examples, and
    `test/toxic_share`, the share of texts with a toxicity above 0.5. If the module returns texts
    from before training too, each has a `_before` and an `_after`, and all but the standard
    deviation a paired `_change`. Validation logs them as `val/...`. A text is scored alone: with
    its dialogue in front the score would be mostly the dialogue's.

    Args:
        model: Hub id, folder or `mini`: a sequence classifier; None scores no toxicity. With a
            classifier other than PPO's reward, the scores show whether the policy only learned to
            exploit its reward.
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
        """Load the classifier, so that a wrong name is reported before any work."""
        if self._scorer is None and self.model is not None:
            self._scorer = RewardScorer(self.model, self.label, self.batch_size).eval()
            self._scorer.find_column(self.toxic_label)

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Score the texts with the classifier, if there is one."""
        if self._scorer is None:
            return {}
        return self._scorer.to(pl_module.device).rate(texts, self.toxic_label)

    def estimates(self, columns: Columns) -> dict[str, Estimate]:
        """Return means, standard deviations, shares and changes."""
        return estimate_toxicity(columns)
