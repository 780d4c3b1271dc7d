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


def test_scores_are_normalized_and_then_penalized() -> None:
    shaping = ScoreShaping(normalize=True, unfinished_penalty=1.0)
    finished = torch.tensor([True, False, False])
    # Mean 3, standard deviation sqrt(2).
    shaped = shaping(torch.tensor([3 - 3**0.5, 3.0, 3 + 3**0.5]), finished)
    torch.testing.assert_close(shaped, torch.tensor([-(1.5**0.5), -1.0, 1.5**0.5 - 1.0]))


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


WEIGHT = torch.nn.Parameter(torch.tensor(2.0))


def give(predictions: list[str], dialogues: Any, references: Any, what: str) -> Any:
    assert isinstance(predictions, list) and len(dialogues) == len(references) == 2
    assert not torch.is_grad_enabled()
    return {
        "numbers": [len(text) for text in predictions], "array": np.array([3, 1]),
        "model": WEIGHT.expand(2) + torch.tensor([1.0, -1.0]),
        "one": 1.0, "three": [1.0] * 3, "column": np.ones((2, 1)), "dict": {"a": [1.0, 2.0]},
        "none": [None, None], "text": ["1", "2"], "generator": (1.0 for _ in predictions),
    }[what]  # fmt: skip


def call(what: str) -> Tensor:
    reward = FunctionReward(f"{__name__}.give", {"what": what})
    return reward.score(Texts(("a b", "c"), ("", ""), (("x",), ("y",))), CPU)


@pytest.mark.parametrize("what", ["numbers", "array", "model"])
def test_a_function_of_texts_is_a_reward(what: str) -> None:
    scores = call(what)
    assert scores.tolist() == [3.0, 1.0]
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


@pytest.mark.parametrize("what", ["one", "three", "column", "dict", "none", "text", "generator"])
def test_a_function_must_return_one_number_for_each_summary(what: str) -> None:
    with pytest.raises(ValueError, match=r"give must return (numbers|one number for each of 2)"):
        call(what)


@pytest.mark.parametrize("path", ["no_such_module.f", "tests.ppo.test_rewards.no_such", "words"])
def test_a_function_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="there is no function"):
        FunctionReward(path)


def test_a_run_names_all_that_is_wrong_with_its_rewards_at_once(
    tiny_ppo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = {
        "gone": {"class_path": "FunctionReward", "init_args": {"function": "no.such"}},
        "none": {"class_path": "FunctionReward", "init_args": {"function": f"{__name__}.none"}},
    }
    bad = ["--model.extra_rewards", json.dumps(terms), "--data.source", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit):
        train.main(["fit", *tiny_ppo, *bad, "--run_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "for 3 reason(s)" in said
    for words in (
        "extra_rewards.gone: reward: there is no function",
        "extra_rewards.none",
        "data:",
    ):
        assert words in said
