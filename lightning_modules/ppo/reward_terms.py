"""Terms of the reward: classifiers, reward models and Python functions."""

import inspect
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
    """Any Python callable over texts.

    Args:
        function: Dotted path of ``f(predictions, dialogues, references, **arguments)``, which
            returns one number per summary: ``predictions`` and ``dialogues`` are lists of B texts
            and ``references`` is a list of B lists of texts. A function with one positional
            parameter receives the predictions alone.
        arguments: Further arguments by name.
        weight: Factor of the term; below 0 for a penalty.

    Raises:
        ValueError: If there is no such function, or it does not accept these arguments.
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
        self.columns = self._count_columns()

    def _count_columns(self) -> int:
        """Return how many of predictions, dialogues and references the function takes: 3 or 1."""
        if not callable(self.function):
            raise ValueError(
                f"reward: {self.path} is a {type(self.function).__name__} and cannot be called; "
                "name a function"
            )
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # some functions written in C have none
            return 3
        problems = []
        for columns in (3, 1):
            try:
                signature.bind(*[()] * columns, **self.arguments)
            except TypeError as error:
                problems.append(str(error))
            else:
                return columns
        raise ValueError(
            f"reward: {self.path}{signature} cannot be called as f(predictions, dialogues, "
            f"references) with the arguments {self.arguments} ({problems[0]}), nor with "
            f"predictions alone ({problems[1]})"
        )

    def score(self, texts: Texts, device: torch.device) -> Float[Tensor, " B"]:
        """Call the function.

        Raises:
            ValueError: If it does not return one number per summary.
        """
        given = [list(each) for each in texts][: self.columns]
        wanted = f"must give one number for each of {len(given[0])} summaries"
        with torch.no_grad():
            values = self.function(*given, **self.arguments)
        try:
            # The output of a model may carry a gradient.
            scores = torch.as_tensor(values, dtype=torch.float32, device=device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward: {self.path} {wanted}, and gave a {type(values).__name__} ({error})"
            ) from error
        if scores.shape != (len(given[0]),):
            raise ValueError(f"reward: {self.path} {wanted}, and gave {list(scores.shape)} numbers")
        return scores


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
        ValueError: If there is no term, or two have the same name.
    """
    terms = dict(extra or {})
    if reward_model is not None:
        if MAIN_REWARD in terms:
            raise ValueError(
                f"extra_rewards: {MAIN_REWARD!r} is the name of model.reward_model's term; "
                "choose another, or set model.reward_model to null"
            )
        terms = {MAIN_REWARD: ClassifierReward(reward_model, label, with_dialogue)} | terms
    if not terms:
        raise ValueError("PPO needs a reward: set model.reward_model or model.extra_rewards")
    return terms


def find_reward_problems(init_args: Any) -> list[str | None]:
    """List problems of the reward settings before anything is loaded; None is no problem."""
    problems: list[str | None] = []
    terms: list[RewardTerm] = []
    for name, term in (init_args.extra_rewards or {}).items():
        try:
            terms.append(instantiate(term))
        except ValueError as error:
            problems.append(f"extra_rewards.{name}: {error}")
    if init_args.reward_model is not None:
        terms.append(
            ClassifierReward(
                init_args.reward_model, init_args.reward_label, init_args.reward_with_dialogue
            )
        )
    return problems + [problem for term in terms for problem in term.find_problems()]


def weigh(
    terms: Mapping[str, RewardTerm], scores: Mapping[str, Float[Tensor, " B"]]
) -> Float[Tensor, " B"]:
    """Sum the scores of all terms, each times its weight."""
    return torch.stack([terms[name].weight * each for name, each in scores.items()]).sum(dim=0)
