"""Terms of the reward: classifiers, reward models and Python functions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from common import hub
from common.imports import import_object, instantiate
from lightning_modules.reward_scorer import RewardScorer, find_scorer_problem

MAIN_REWARD = "reward_model"
"""Name of the term of ``reward_model``; the others are named in ``extra_rewards``."""


class Texts(NamedTuple):
    """B summaries with the dialogues and references of their rows."""

    summaries: Sequence[str]
    dialogues: Sequence[str]
    references: Sequence[Sequence[str]]


class RewardTerm(ABC):
    """One term of the reward.

    Args:
        weight: Factor of the term in the sum of all terms.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def find_problems(self) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        return []

    def load(self) -> object:
        """Load what the term scores with, before any work; by default there is nothing."""
        return None

    @abstractmethod
    def score(self, texts: Texts, device: torch.device) -> Float[Tensor, " B"]:
        """Score each summary, before the weight: fp32 [B]."""


class ClassifierReward(RewardTerm):
    """The raw logit of a frozen classifier or reward model.

    Args:
        model: Hub id, folder written by ``save_pretrained`` (a reward run's ``export``), or
            ``mini``.
        label: Label whose logit is the score; ignored if the model has one output.
        with_dialogue: Score the summary as the second text of a pair with its dialogue. None
            follows the model's training: an exported :class:`RewardModel` records it, and any other
            classifier sees the summary alone, because with the dialogue in front a toxicity score
            mostly describes the dialogue.
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
        """List a missing model or label."""
        path = hub.resolve_model(self.model, "classifier")
        return [
            hub.find_model_problem(path, "reward model")
            or find_scorer_problem(path, self.label, self.with_dialogue)
        ]

    def load(self) -> RewardScorer:
        """Load the classifier once."""
        if self.scorer is None:
            self.scorer = RewardScorer(self.model, self.label)
        return self.scorer

    def score(self, texts: Texts, device: torch.device) -> Float[Tensor, " B"]:
        """Score the summaries with the classifier."""
        scorer = self.load().to(device)
        paired = scorer.wants_dialogue if self.with_dialogue is None else self.with_dialogue
        return scorer.logits(texts.summaries, texts.dialogues if paired else None)


class FunctionReward(RewardTerm):
    """A Python function of texts.

    Args:
        function: Dotted path of ``f(predictions, dialogues, references, **arguments)``, which
            returns one number per summary: ``predictions`` and ``dialogues`` are lists of B texts
            and ``references`` is a list of B lists of texts.
        arguments: Further arguments by name.
        weight: Factor of the term; below 0 for a penalty.

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
                "as metrics.rouge.rouge, and put a module of your own beside train.py or on "
                "PYTHONPATH"
            ) from error
        self.path = function
        self.arguments = dict(arguments or {})

    def score(self, texts: Texts, device: torch.device) -> Float[Tensor, " B"]:
        """Call the function.

        Raises:
            ValueError: If it does not return one number per summary.
        """
        with torch.no_grad():
            values = self.function(*(list(each) for each in texts), **self.arguments)
        try:
            scores = torch.as_tensor(values, dtype=torch.float32, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"reward: {self.path} must return numbers ({error})") from error
        if scores.shape != (len(texts.summaries),):
            raise ValueError(
                f"reward: {self.path} must return one number for each of "
                f"{len(texts.summaries)} summaries, and returned the shape {list(scores.shape)}"
            )
        return scores.detach()  # the output of a model may carry a gradient


def name_terms(
    reward_model: str | None,
    label: str,
    with_dialogue: bool | None,
    extra: Mapping[str, RewardTerm] | None,
) -> dict[str, RewardTerm]:
    """Collect the terms of the reward by the names under which they are logged.

    Args:
        reward_model: Model of the first term, a :class:`ClassifierReward`; None omits it.
        label: Its label.
        with_dialogue: See :class:`ClassifierReward`.
        extra: The other terms by name.

    Raises:
        ValueError: If there is no term, or one has the name of ``reward_model``'s.
    """
    terms = dict(extra or {})
    if reward_model is not None and MAIN_REWARD in terms:
        raise ValueError(f"extra_rewards: choose another name than {MAIN_REWARD!r}")
    if reward_model is not None:
        terms = {MAIN_REWARD: ClassifierReward(reward_model, label, with_dialogue)} | terms
    if not terms:
        raise ValueError("PPO needs a reward: set model.reward_model or model.extra_rewards")
    return terms


def find_reward_problems(init_args: Any) -> list[str | None]:
    """List problems of the reward settings before anything is loaded; None is no problem."""
    problems: list[str | None] = []
    extra: dict[str, RewardTerm] = {}
    for name, term in (init_args.extra_rewards or {}).items():
        try:
            extra[name] = instantiate(term)
        except ValueError as error:
            problems.append(f"extra_rewards.{name}: {error}")
    label, with_dialogue = init_args.reward_label, init_args.reward_with_dialogue
    if extra or init_args.reward_model is not None:
        terms = name_terms(init_args.reward_model, label, with_dialogue, extra)
        problems += [problem for term in terms.values() for problem in term.find_problems()]
    return problems


def weigh(
    terms: Mapping[str, RewardTerm], scores: Mapping[str, Float[Tensor, " B"]]
) -> Float[Tensor, " B"]:
    """Sum the scores of all terms, each times its weight."""
    return torch.stack([terms[name].weight * each for name, each in scores.items()]).sum(dim=0)
