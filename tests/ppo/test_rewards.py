import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train
from lightning_modules.ppo.reward_terms import ClassifierReward, FunctionReward, Texts
from lightning_modules.ppo.rewards import (
    RunningMoments,
    ScoreShaping,
    shape_rewards,
)
from lightning_modules.reward_scorer import RewardScorer

CPU = torch.device("cpu")


def test_score_sits_on_the_last_real_token_and_kl_on_each() -> None:
    kl = torch.tensor([[0.5, -0.25, 9.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = shape_rewards(torch.tensor([2.0, -1.0]), kl, mask, beta=0.1)
    expected = torch.tensor([[-0.05, 0.025 + 2.0, 0.0], [-0.1, -0.2, -0.3 - 1.0]])
    torch.testing.assert_close(rewards, expected)


def test_without_kl_only_the_score_remains() -> None:
    mask = torch.tensor([[True, False]])
    rewards = shape_rewards(torch.tensor([3.0]), torch.ones(1, 2), mask, beta=0.0)
    assert rewards.tolist() == [[3.0, 0.0]]


def test_running_moments_are_those_of_all_scores() -> None:
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3 + 5
    moments = RunningMoments()
    assert moments.std == 1.0
    for part in (scores[:1], scores[1:17], scores[17:]):
        moments.update(part)
    assert moments.mean == pytest.approx(scores.double().mean().item(), abs=1e-9)
    assert moments.std == pytest.approx(scores.double().std(unbiased=False).item(), abs=1e-9)


def test_running_moments_count_all_ranks() -> None:
    mine, theirs = torch.tensor([1.0, 2.0]), torch.tensor([6.0, 7.0, 9.0])
    both = torch.cat([mine, theirs]).double()
    moments = RunningMoments()
    sums = [torch.tensor([5.0, both.sum().item()]), (both - both.mean()).square().sum()]
    moments.update(mine, sum_over_ranks=lambda _: sums.pop(0))
    assert moments.mean == pytest.approx(5.0)
    assert moments.std == pytest.approx(both.std(unbiased=False).item())


def test_scores_are_shaped_in_the_order_that_the_settings_say() -> None:
    shaping = ScoreShaping(normalize=True, clip=1.0, unfinished_penalty=1.0)
    finished = torch.tensor([True, False, False])
    # Mean 3, standard deviation sqrt(2): -1.22, 0, 1.22; clipped -1, 0, 1; then the penalty.
    shaped = shaping(torch.tensor([3 - 3**0.5, 3.0, 3 + 3**0.5]), finished)
    torch.testing.assert_close(shaped, torch.tensor([-1.0, -1.0, 0.0]))


def test_a_classifier_can_be_asked_about_the_pair(roberta: str) -> None:
    texts = Texts(["It is.", "No."], ["Is it?", "Really?"], [["a"], ["b"]])
    scorer = RewardScorer(roberta, "hate")
    pairs = scorer.tokenizer(texts.dialogues, texts.summaries, padding=True, return_tensors="pt")
    expected = scorer.model(**pairs).logits[:, 1]
    torch.testing.assert_close(ClassifierReward(roberta, "hate", True).score(texts, CPU), expected)
    alone = ClassifierReward(roberta, "hate").score(texts, CPU)
    torch.testing.assert_close(alone, scorer.logits(texts.summaries))
    assert (alone - expected).abs().max() > 1e-3


def test_a_long_dialogue_leaves_the_summary_whole(roberta: str) -> None:
    scorer = RewardScorer(roberta)
    same, other = (scorer.logits([text], ["x" * 500]) for text in ("yes", "no!"))
    assert not torch.allclose(same, other)


def words(predictions: list[str], dialogues: list[str], references: list[list[str]]) -> list[int]:
    return [len(text.split()) for text in predictions]


def test_any_function_over_texts_is_a_reward() -> None:
    texts = Texts(("a b", "c"), ("", ""), (("x",), ("y",)))
    assert FunctionReward(f"{__name__}.words").score(texts, CPU).tolist() == [2.0, 1.0]


def test_rouge_and_the_faithfulness_checks_are_rewards() -> None:
    dialogue = "#Person1#: Is Ann in?\n#Person2#: No."
    texts = Texts(
        ["Ann is out.", "Bob is out, says #Person7#."], [dialogue] * 2, [["Ann is out."]] * 2
    )

    def score(function: str, **arguments: Any) -> list[float]:
        return FunctionReward(function, arguments).score(texts, CPU).tolist()

    assert score("metrics.rouge.rouge", key="rouge1")[0] == 1.0 > score("metrics.rouge.rouge")[1]
    assert score("metrics.faithfulness.unfaithful_name") == [0.0, 1.0]
    assert score("metrics.faithfulness.unfaithful_speaker") == [0.0, 1.0]
    with pytest.raises(ValueError, match="ROUGE has no 'rouge9'"):
        score("metrics.rouge.rouge", key="rouge9")


class Judge:
    """Callable, as a model that is loaded once may be."""

    def __call__(self, texts: list[str], dialogues: Any, references: Any) -> Any:
        return np.array([len(text) for text in texts])


judge = Judge()


def length(texts: list[str], unit: float = 1.0) -> list[float]:
    return [len(text) / unit for text in texts]


WEIGHT = torch.nn.Parameter(torch.tensor(2.0))


def with_gradient(texts: list[str], *_: Any) -> Tensor:
    assert not torch.is_grad_enabled()
    return WEIGHT.expand(len(texts))


@pytest.mark.parametrize(
    ("function", "arguments", "scores"),
    [
        ("judge", {}, [3.0, 1.0]),
        ("length", {}, [3.0, 1.0]),
        ("length", {"unit": 2.0}, [1.5, 0.5]),
        ("with_gradient", {}, [2.0, 2.0]),
    ],
)
def test_callables_and_numbers_of_many_kinds_are_taken(
    function: str, arguments: dict[str, Any], scores: list[float]
) -> None:
    texts = Texts(["a b", "c"], ["", ""], [["x"], ["y"]])
    found = FunctionReward(f"{__name__}.{function}", arguments).score(texts, CPU)
    assert found.tolist() == scores
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("path", ["no_such_module.f", "tests.ppo.test_rewards.no_such", "words"])
def test_a_function_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="there is no function"):
        FunctionReward(path)


def two(texts: list[str], references: list[list[str]]) -> list[float]:
    return [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("CPU", {}, r"test_rewards\.CPU is a device and cannot be called"),
        ("two", {}, r"two\(texts: .* cannot be called as .*too many.* predictions alone \(missing"),
        ("words", {"factor": 2}, "unexpected keyword argument 'factor'"),
    ],
)
def test_what_cannot_be_called_so_is_refused_before_the_run(
    function: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionReward(f"{__name__}.{function}", arguments)


def give(predictions: list[str], dialogues: Any, references: Any, what: str) -> Any:
    return {
        "one": 1.0, "three": [1.0] * 3, "column": np.ones((2, 1)), "dict": {"a": [1.0, 2.0]},
        "none": [None, None], "text": ["1", "2"], "generator": (1.0 for _ in predictions),
    }[what]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("one", r"and gave \[\] numbers"),
        ("three", r"and gave \[3\] numbers"),
        ("column", r"and gave \[2, 1\] numbers"),
        ("dict", "and gave a dict"),
        ("none", "and gave a list"),
        ("text", "and gave a list"),
        ("generator", "and gave a generator"),
    ],
)
def test_a_function_must_give_one_number_a_summary(what: str, message: str) -> None:
    reward = FunctionReward(f"{__name__}.give", {"what": what})
    with pytest.raises(ValueError, match=f"one number for each of 2 summaries, {message}"):
        reward.score(Texts(["a", "b"], ["", ""], [[], []]), CPU)


def test_a_run_names_all_that_is_wrong_with_its_rewards_at_once(
    tiny_ppo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = {
        "gone": {"class_path": "FunctionReward", "init_args": {"function": "no.such"}},
        "two": {"class_path": "FunctionReward", "init_args": {"function": f"{__name__}.two"}},
    }
    bad = ["--model.extra_rewards", json.dumps(terms), "--data.source", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit):
        train.main(["fit", *tiny_ppo, *bad, "--run_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "for 3 reason(s)" in said
    for words in ("extra_rewards.gone: reward: there is no function", "extra_rewards.two", "data:"):
        assert words in said
