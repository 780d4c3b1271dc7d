"""Score generated texts with an evaluator that the policy was not rewarded by."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback
from lightning_modules.ppo.reward_terms import RewardTerm, Texts


class EvaluatorCallback(TextMetricCallback):
    """Log the mean score of an independent evaluator, higher being better.

    A policy that exploits the gaps of its reward raises the reward and not this score; PPOMonitor's
    ``falls: {val/evaluator: 0.1}`` reports it.

    Args:
        evaluator: A classifier, a reward model or a function, as PPO takes them for rewards. Its
            weight multiplies the score; below 0 for what is to be avoided.
        name: Metric name, logged as ``val/<name>`` and ``test/<name>``; several evaluators need
            different names.
    """

    def __init__(self, evaluator: RewardTerm, name: str = "evaluator") -> None:
        super().__init__()
        self.evaluator = evaluator
        self.name = name

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the evaluator, so that a wrong name is reported before any work.

        Raises:
            ValueError: If it cannot be loaded.
        """
        if problems := [problem for problem in self.evaluator.find_problems() if problem]:
            raise ValueError(f"EvaluatorCallback {self.name}: " + "; ".join(problems))
        self.evaluator.load()

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Score the texts with the evaluator."""
        dialogues, references = ([row[name] for row in rows] for name in ("dialogue", "references"))
        scores = self.evaluator.score(Texts(texts, dialogues, references), pl_module.device)
        return {self.name: (self.evaluator.weight * scores).tolist()}
