"""Score generated texts by a judge that the policy was not rewarded by."""

from collections.abc import Sequence

import lightning as L

from callbacks.text_metric import Columns, Row, TextMetricCallback, score_texts
from lightning_modules.ppo.reward_terms import ClassifierReward, RewardTerm, Texts


class JudgeCallback(TextMetricCallback):
    """Log `val/judge` and `test/judge`: the mean score of a held-out judge, higher being better.

    A policy that has found the gaps of its reward pleases that reward and not the judge. With
    ``PPOWatch``'s ``falls: {val/judge: 0.1}`` the run says so itself. Where the module gives texts
    of before training too, `test/judge_before` and the paired `test/judge_change` are recorded.

    Args:
        judge: A classifier, a reward model or a function, as PPO takes them for rewards; its
            weight is a factor of the score, below 0 for what is to be avoided.
        name: Name under which it is logged; several judges need several names.

    Raises:
        ValueError: If the name is no plain word.
    """

    def __init__(self, judge: RewardTerm, name: str = "judge") -> None:
        super().__init__()
        if not name.isidentifier():
            raise ValueError(f"JudgeCallback: name must be a plain word, got {name!r}")
        self.judge = judge
        self.name = name

    @property
    def state_key(self) -> str:
        """A key of its own in a checkpoint, as there may be several judges."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the judge, so that a wrong name is known before any work.

        Raises:
            ValueError: If it cannot be had.
        """
        if problems := [problem for problem in self.judge.find_problems() if problem]:
            raise ValueError(f"JudgeCallback {self.name}: " + "; ".join(problems))
        if isinstance(self.judge, ClassifierReward):
            self.judge.load()

    def score(self, pl_module: L.LightningModule, rows: Sequence[Row]) -> Columns:
        """Score the rows' predictions, and those of before where there are any."""
        dialogues = [row["dialogue"] for row in rows]
        references = [row["references"] for row in rows]

        def ask(texts: Sequence[str]) -> Columns:
            scores = self.judge.score(Texts(texts, dialogues, references), pl_module.device)
            return {self.name: (self.judge.weight * scores).tolist()}

        return score_texts(rows, ask)
