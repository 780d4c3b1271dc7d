import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from rouge_score.rouge_scorer import RougeScorer

from callbacks.text_metric import gather_rows
from metrics.rouge import KEYS, Rouge, split_sentences

MAT = "the cat sat on the mat"


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


def test_per_example_keeps_the_order_of_updates() -> None:
    rouge = Rouge()
    rouge.update(["the cat sat", "dog"], [[MAT], [MAT]])
    rouge.update([MAT], [[MAT]])
    assert rouge.per_example()["rouge1"].tolist() == pytest.approx([2 / 3, 0, 1])
    assert rouge.compute()["rouge1"].item() == pytest.approx((2 / 3 + 0 + 1) / 3)
    rouge.reset()
    with pytest.raises(ValueError, match="at least one example"):
        rouge.per_example()


def test_refuses_examples_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="2 predictions against 1 lists"):
        Rouge().update(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="list of at least one reference"):
        Rouge().update(["a"], ["a"])
    with pytest.raises(ValueError, match="list of at least one reference"):
        Rouge().update(["a"], [[]])


def _on_a_rank(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    # Uneven: rank 0 has one row, rank 1 two, and row 2 is on both as a sampler would pad.
    mine = [(2, "the cat sat")] if rank == 0 else [(1, "dog"), (0, MAT), (2, "the cat sat")]
    rouge = Rouge()
    rouge.update([text for _, text in mine], [[MAT]] * len(mine))
    rows = gather_rows([{"index": index, "prediction": text} for index, text in mine])
    torch.save({"rouge1": rouge.compute()["rouge1"], "rows": rows}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_see_the_examples_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_on_a_rank, (port, tmp_path), nprocs=2)
    for rank in (0, 1):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert seen["rouge1"].item() == pytest.approx((2 / 3 + 0 + 1 + 2 / 3) / 4)
        assert [(row["index"], row["prediction"]) for row in seen["rows"]] == [
            (0, MAT), (1, "dog"), (2, "the cat sat"),
        ]  # fmt: skip
