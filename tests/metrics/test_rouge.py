import copy
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from torchmetrics import MetricCollection

from benchmarks import rouge as benchmark
from benchmarks.dialogsum import FOLDER, read_dialogsum
from datamodules.reading import Row
from metrics.intervals import bootstrap_mean
from metrics.rouge import Rouge, split_sentences
from metrics.words import KEYS, tokenize
from tests.ranks import MAT, score_on_a_rank


def score(prediction: str, *references: str, use_stemmer: bool = True) -> dict[str, float]:
    rouge = Rouge(use_stemmer)
    rouge.update([prediction], [references])
    return {key: value.item() for key, value in rouge.compute().items()}


def test_values_by_hand() -> None:
    scores = score("the cat sat", MAT)
    # rouge1: 3 of 3 and 3 of 6 words; rouge2: 2 of 2 and 2 of 5 pairs; rougeL: "the cat sat".
    assert scores == pytest.approx(
        {"rouge1": 2 / 3, "rouge2": 4 / 7, "rougeL": 2 / 3, "rougeLsum": 2 / 3}
    )


def test_several_references_give_mean_and_best() -> None:
    scores = score("the cat sat", MAT, "the cat sat", "dogs")
    assert scores["rouge1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["rouge2"] == pytest.approx((4 / 7 + 1 + 0) / 3)
    assert scores["rouge1_best"] == scores["rouge2_best"] == 1


def test_one_reference_has_no_best() -> None:
    assert set(score("a cat", "a dog")) == set(KEYS)


def test_stemmer_is_on_unless_told() -> None:
    assert score("running cats", "run cat")["rouge1"] == 1
    assert score("running cats", "run cat", use_stemmer=False)["rouge1"] == 0


def test_lsum_is_over_sentences() -> None:
    # Sentence by sentence all is there; in one sequence only half is in order.
    scores = score("Bob comes. Ann goes.", "Ann goes. Bob comes.")
    assert scores["rougeLsum"] == 1
    assert scores["rougeL"] == 0.5


def test_split_sentences() -> None:
    assert split_sentences(" One. Two!  Three?\nFour 3.5 ") == "One.\nTwo!\nThree?\nFour 3.5"


def test_values_are_those_of_rouge_score() -> None:
    prediction = "Ann asks Bob for two tickets. He has none left! She will come again on Monday."
    reference = "Bob has no tickets left. Ann, who asked for two of them, comes again on Monday."
    scorer = RougeScorer(list(KEYS), use_stemmer=True)
    expected = scorer.score(split_sentences(reference), split_sentences(prediction))
    assert score(prediction, reference) == {key: expected[key].fmeasure for key in KEYS}


words = st.sampled_from(
    ["Running", "don't", "caresses", "été", "3.5", "#Person1#", "as", "İ", "\n"]
)


@given(st.lists(words | st.text(max_size=8)).map(" ".join), st.booleans())
def test_tokens_are_those_of_rouge_score(text: str, use_stemmer: bool) -> None:
    assert list(tokenize(text, use_stemmer)) == DefaultTokenizer(use_stemmer).tokenize(text)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no DialogSum in {FOLDER}; set DIALOGSUM_DIR")
@pytest.mark.parametrize("use_stemmer", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_values_are_those_of_rouge_score_on_real_text(use_stemmer: bool, count: int) -> None:
    rows = [row.references[:count] for row in read_dialogsum("test")]
    predictions = [row.references[0] for row in read_dialogsum("validation")][: len(rows)]
    # Real predictions are closer to their references than those of other dialogues.
    predictions[::2] = [row.references[2] for row in read_dialogsum("test")][::2]
    rouge = Rouge(use_stemmer)
    rouge.update(predictions, rows)
    found = rouge.per_example()
    scorer = RougeScorer(list(KEYS), use_stemmer=use_stemmer)
    for place, (prediction, references) in enumerate(zip(predictions, rows, strict=True)):
        plain = [scorer.score(text, prediction) for text in references]
        split = [
            scorer.score(split_sentences(text), split_sentences(prediction)) for text in references
        ]
        for key in KEYS:
            # Only rougeLsum knows of lines; the others are equal on the texts as they are.
            scores = [one[key].fmeasure for one in (split if key == "rougeLsum" else plain)]
            assert found[key][place].item() == pytest.approx(sum(scores) / count, abs=1e-9)
            assert found[f"{key}_best"][place].item() == pytest.approx(max(scores), abs=1e-9)


def test_per_example_keeps_the_order_of_updates() -> None:
    rouge = Rouge()
    rouge.update(["the cat sat", "dog"], [[MAT], [MAT]])
    rouge.update([], [])
    rouge.update([MAT], [[MAT]])
    assert rouge.per_example()["rouge1"].tolist() == pytest.approx([2 / 3, 0, 1])
    assert rouge.compute()["rouge1"].item() == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_estimates_are_bootstrapped_over_the_examples() -> None:
    rouge = Rouge()
    rouge.update(["the cat sat", "dog", MAT], [[MAT]] * 3)
    expected = bootstrap_mean([2 / 3, 0, 1], resamples=50, seed=1)
    assert rouge.estimates(resamples=50, seed=1)["rouge1"] == pytest.approx(expected)
    assert set(rouge.estimates()) == set(KEYS)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("method", ["compute", "per_example", "estimates"])
def test_nothing_has_no_score(method: str) -> None:
    rouge = Rouge()
    rouge.update(["a"], [["a", "b"]])
    rouge.reset()
    assert rouge.most_references == 0
    with pytest.raises(ValueError, match="at least one example"):
        getattr(rouge, method)()


def test_forward_gives_the_batch_and_compute_all() -> None:
    rouge = Rouge()
    first = rouge(["the cat sat", "dogs"], [[MAT, "dogs"], ["dogs"]])
    assert first["rouge1_best"].item() == pytest.approx((2 / 3 + 1) / 2)
    second = rouge([MAT], [[MAT]])
    assert second["rouge1"].item() == 1
    assert set(second) == set(KEYS)  # no several references in this batch
    assert rouge.compute()["rouge1"].item() == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert rouge.compute()["rouge1_best"].item() == pytest.approx((2 / 3 + 1 + 1) / 3)


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        lambda module: module["rouge"].set_dtype(torch.float16),
        lambda module: module.to("cpu").float(),
    ],
)
def test_casting_the_module_around_it_loses_no_digit(cast: Any) -> None:
    module = torch.nn.ModuleDict({"rouge": Rouge(), "layer": torch.nn.Linear(1, 1)})
    rouge = module["rouge"]
    assert isinstance(rouge, Rouge)
    rouge.update(["the cat sat"], [[MAT]])
    cast(module)
    rouge.update(["the cat"], [[MAT]])
    assert rouge.per_example()["rouge1"].dtype == rouge.dtype == torch.float64
    assert rouge.compute()["rouge1"].item() == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-15)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
def test_a_copy_goes_its_own_way(again: Any) -> None:
    rouge = Rouge(use_stemmer=False)
    rouge.update(["cats"], [["cat"]])
    other = again(rouge)
    other.update(["cat"], [["cat"]])
    assert other.per_example()["rouge1"].tolist() == [0, 1]  # the stemmer's setting too
    assert rouge.clone().per_example()["rouge1"].tolist() == [0]


def test_it_is_a_metric_among_others() -> None:
    both = MetricCollection(
        {"stems": Rouge(), "words": Rouge(use_stemmer=False)}, compute_groups=False
    )
    both.update(["cats"], [["cat"]])
    found = both.compute()
    assert (found["stems_rouge1"].item(), found["words_rouge1"].item()) == (1, 0)
    more = Rouge()
    more.update(["dog"], [["cat", "dog"]])
    more.merge_state(both["stems"])
    assert sorted(more.per_example()["rouge1"].tolist()) == [0.5, 1]


def test_refuses_examples_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="2 predictions against 1 lists"):
        Rouge().update(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="list of at least one reference"):
        Rouge().update(["a"], ["a"])
    with pytest.raises(ValueError, match="list of at least one reference"):
        Rouge().update(["a"], [[]])
    with pytest.raises(ValueError, match="give a list of predictions"):
        Rouge().update("a", [["a"]])


def test_two_ranks_see_the_examples_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(score_on_a_rank, (port, tmp_path), nprocs=2)
    for rank in (0, 1):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert seen["rouge1"].item() == pytest.approx((2 / 3 + 0 + 1 + 2 / 3) / 4)
        assert seen["n"] == 4
        assert seen["own"] == (1 if rank == 0 else 3)
        assert seen["alone"].item() == pytest.approx((1 / 3 + 1) / 2)
        assert seen["alone_best"].item() == pytest.approx((2 / 3 + 1) / 2)
        assert [(row["index"], row["prediction"]) for row in seen["rows"]] == [
            (0, MAT), (1, "dog"), (2, "the cat sat"),
        ]  # fmt: skip


def test_the_benchmark_compares_the_same_thing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(str(i), "d", (f"the cat {i}", MAT, "dogs")) for i in range(4)]
    monkeypatch.setattr(benchmark, "read_dialogsum", lambda split: rows)
    monkeypatch.setattr(benchmark, "ROWS", 16)
    assert len(set(benchmark.make_examples(rows, rows))) == 16
    assert benchmark.main(["1"]) == 0
    assert "metric / direct" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"rouge1: rouge_score gives 0\.5, the metric 0\.6"):
        benchmark.check({"rouge1": 0.5}, {"rouge1": 0.6})
