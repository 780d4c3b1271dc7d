from pathlib import Path
from typing import Any

import pytest

from callbacks.evaluator import EvaluatorCallback
from common.run_folder import RunFolder
from lightning_modules.ppo.reward_terms import ClassifierReward, FunctionReward
from metrics.mini import share_polite
from tests.tiny_run import TinyModule, loader, make_trainer


def score_words(
    predictions: list[str], dialogues: list[str], references: list[list[str]]
) -> list[float]:
    """The number in "#Person1#: number 3", plus 10 if the reference lacks the text."""
    rows = zip(predictions, dialogues, references, strict=True)
    return [int(dialogue[-1]) + 10.0 * (text not in refs[0]) for text, dialogue, refs in rows]


def words(weight: float = 1.0) -> FunctionReward:
    return FunctionReward("tests.test_evaluator.score_words", weight=weight)


def test_validation_logs_the_mean_score(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, EvaluatorCallback(words()), EvaluatorCallback(words(-2.0), "other")
    )
    trainer.fit(TinyModule(), loader(), loader())
    assert trainer.callback_metrics["val/evaluator"] == 1.5  # of 0, 1, 2 and 3
    assert trainer.callback_metrics["val/other"] == -3


def test_a_test_records_before_after_and_change_with_intervals(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, EvaluatorCallback(words()))
    trainer.test(TinyModule(before="a dog"), loader(), verbose=False)
    found = RunFolder(tmp_path).read_summary()["metrics"]
    assert found["test/evaluator"]["value"] == 1.5
    assert found["test/evaluator"]["n"] == 4
    assert found["test/evaluator"]["low"] < 1.5 < found["test/evaluator"]["high"]
    assert found["test/evaluator_before"]["value"] == 11.5
    assert found["test/evaluator_change"] == {"value": -10, "n": 4, "low": -10, "high": -10}
    rows = RunFolder(tmp_path).read_predictions()
    assert [row["evaluator"] for row in rows] == [0, 1, 2, 3]


def test_classifier_scores_by_the_logit_of_its_label(tmp_path: Path, roberta: str) -> None:
    judge = ClassifierReward(roberta, "hate")
    trainer = make_trainer(tmp_path, EvaluatorCallback(judge))
    trainer.fit(TinyModule(), loader(), loader())
    expected = float(judge.load().logits(["the cat sat"])[0])
    assert float(trainer.callback_metrics["val/evaluator"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluator": ClassifierReward("no/where")}, "EvaluatorCallback evaluator: .*no/where"),
    ],
)
def test_invalid_evaluator_is_refused_before_training(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, EvaluatorCallback(**settings)).fit(TinyModule(), loader(), loader())


def test_polite_share_counts_whole_rude_words() -> None:
    texts = ["That LAZY Ann buys a book, which is stupid.", "Ann's foolish clownfish", "..."]
    assert share_polite(texts, texts, [[]] * 3) == pytest.approx([1 - 2 / 9, 1.0, 1.0])


def test_the_list_of_rude_words_has_those_of_summaries() -> None:
    from tools.mini.stories import wordings

    insults = [phrase for phrases in wordings()["insults"].values() for phrase in phrases]
    assert len(insults) > 15
    assert all(value < 1 for value in share_polite(insults, insults, insults))
