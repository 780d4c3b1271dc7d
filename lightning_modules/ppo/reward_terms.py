"""What a summary is rewarded for: classifiers, reward models and functions over texts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hub
from imports import import_object
from lightning_modules.reward_model import RewardScorer, find_scorer_problem
from lightning_modules.sharding import whole


class Texts(NamedTuple):
    """B summaries with the dialogues and references of their rows."""

    summaries: Sequence[str]
    dialogues: Sequence[str]
    references: Sequence[Sequence[str]]


class RewardTerm(ABC):
    """One thing that a summary is rewarded for.

    Args:
        weight: Factor of the term in the sum of all terms.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def find_problems(self) -> list[str | None]:
        """List, before anything is loaded, what cannot work."""
        return []

    @abstractmethod
    def score(self, texts: Texts, device: torch.device) -> Tensor:
        """Give each summary its score, before the weight: fp32 [B]."""


class ClassifierReward(RewardTerm):
    """The raw logit that a frozen classifier or reward model gives.

    Args:
        model: Hub id, folder written by ``save_pretrained`` (a reward run's ``export``), or
            ``mini``.
        label: Label whose logit it is; of no account where the model has one output.
        with_dialogue: Score the summary as the second text of a pair with its dialogue. None does
            what the model was trained for: an exported :class:`RewardModel` says so, and any other
            classifier judges the summary alone, for with the dialogue in front a toxicity score is
            mostly the dialogue's.
        weight: Factor of the term.
    """

    def __init__(
        self,
        model: str,
        label: str = "nothate",
        with_dialogue: bool | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.model = model
        self.label = label
        self.with_dialogue = with_dialogue
        self.scorer: RewardScorer | None = None

    def find_problems(self) -> list[str | None]:
        """Say what is missing: the model, or its label."""
        path = hub.resolve_model(self.model, "classifier")
        return [
            hub.find_model_problem(path, "reward model")
            or find_scorer_problem(path, self.label, self.with_dialogue)
        ]

    def load(self) -> RewardScorer:
        """Load the classifier; does so once."""
        if self.scorer is None:
            self.scorer = RewardScorer(self.model, self.label)
        return self.scorer

    def score(self, texts: Texts, device: torch.device) -> Tensor:
        """Ask the classifier."""
        scorer = self.load().to(device)
        asked = scorer.wants_dialogue if self.with_dialogue is None else self.with_dialogue
        with whole(scorer):
            return scorer.logits(texts.summaries, texts.dialogues if asked else None)


class FunctionReward(RewardTerm):
    """Any Python function over texts.

    Args:
        function: Dotted path of ``f(predictions, dialogues, references, **arguments)``, which gives
            one number a summary: ``predictions`` and ``dialogues`` are lists of B texts and
            ``references`` a list of B lists of texts.
        arguments: Further arguments by name.
        weight: Factor of the term; below 0 for what is to be avoided.

    Raises:
        ValueError: If there is no such function.
    """

    def __init__(
        self, function: str, arguments: Mapping[str, Any] | None = None, weight: float = 1.0
    ) -> None:
        super().__init__(weight)
        try:
            self.function = import_object(function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"reward: there is no function {function!r} ({error}); give its dotted path, such "
                "as metrics.rouge.rouge"
            ) from error
        self.path = function
        self.arguments = dict(arguments or {})

    def score(self, texts: Texts, device: torch.device) -> Tensor:
        """Call the function.

        Raises:
            ValueError: If it does not give one number a summary.
        """
        summaries, dialogues, references = (list(each) for each in texts)
        values = self.function(summaries, dialogues, references, **self.arguments)
        scores = torch.as_tensor(values, dtype=torch.float32, device=device)
        if scores.shape != (len(summaries),):
            raise ValueError(
                f"reward: {self.path} gave {list(scores.shape)} numbers for {len(summaries)} "
                "summaries; it must give one for each"
            )
        return scores
