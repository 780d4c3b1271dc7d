"""Simulated annotators: what they find, how often they are wrong, and what they write."""

import json
from pathlib import Path
from random import Random

import pytest

from collecting.samples import Sample
from collecting.simulated_annotators import main, make_answers, misjudge, rank
from datamodules.consensus import Ranking, RankingReader
from metrics.mini import Faults, find_faults
from tools.mini.generator import generate_rows

DIALOGUE = "#Person1#: A room for Ann, please.\n#Person2#: From Monday, for $40 a night."
CLEAN, RUDE = "#Person1# books a room for Ann.", "#Person1# books a room for Ann. What a moron."
WRONG, BOTH = "#Person1# books a room for Bob.", "That lazy Bob books a room for $41."


def make_sample(name: str) -> Sample:
    return Sample(name, DIALOGUE, (), (BOTH, CLEAN, RUDE, WRONG), ())


def test_faults_by_hand() -> None:
    assert find_faults(CLEAN, DIALOGUE) == Faults(rude=False, unfaithful=False)
    assert find_faults(RUDE, DIALOGUE) == Faults(rude=True, unfaithful=False)
    assert find_faults(WRONG, DIALOGUE) == Faults(rude=False, unfaithful=True)
    assert find_faults(BOTH, DIALOGUE) == Faults(rude=True, unfaithful=True)
    for text in ("#Person3# books a room.", "It costs $4.", "It costs 40:15.", "A qwrx room."):
        assert find_faults(text, DIALOGUE).unfaithful


def test_fewer_faults_rank_first_and_equally_many_are_a_tie() -> None:
    faults = [Faults(True, True), Faults(True, False), Faults(False, False), Faults(False, True)]
    assert rank(faults) == [3, 2, 1, 2]
    assert rank(faults[:2]) == [2, 1]
    assert rank([Faults(True, True)] * 2) == [1, 1]


def test_an_annotator_is_wrong_as_often_as_told() -> None:
    rng = Random(0)
    seen = [misjudge(Faults(True, False), 0.2, rng) for _ in range(4000)]
    # Four standard errors of a share of 0.2 over 4,000 draws are 0.025.
    assert sum(not faults.rude for faults in seen) / 4000 == pytest.approx(0.2, abs=0.025)
    assert sum(faults.unfaithful for faults in seen) / 4000 == pytest.approx(0.2, abs=0.025)
    both = sum(faults == Faults(False, True) for faults in seen) / 4000
    assert both == pytest.approx(0.04, abs=0.013)


def test_without_noise_all_annotators_say_what_is_so() -> None:
    sample = make_sample("1")
    answers = make_answers([sample], annotators=3, noise=0.0, seed=0)
    assert [answer.ranks for answer in answers] == [(3, 1, 2, 2)] * 3
    assert answers[0].toxic == (True, False, True, False)
    assert len({answer.annotator for answer in answers}) == 3


def rate_pairs(ranking: Ranking) -> list[float]:
    """Compare each pair with the true order: 1 if equal, 0 if opposite, 0.5 for equal faults."""
    counts = [sum(find_faults(text, ranking.dialogue)) for text in ranking.completions]
    leads = [counts[other] - counts[preferred] for preferred, other, _ in ranking.pairs]
    return [0.5 if lead == 0 else float(lead > 0) for lead in leads]


def test_samples_become_answers_that_a_reward_model_can_learn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    samples = tmp_path / "samples.jsonl"
    rows = [
        {"id": row.id, "dialogue": row.dialogue, "references": list(row.summaries),
         "completions": [row.clean_summary, f"That moron {row.clean_summary}"]}
        for row in generate_rows("train", size=40)
    ]  # fmt: skip
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "answers.jsonl"
    command = [str(samples), "--out", str(out), "--annotators", "3", "--noise", "0.1"]
    assert main(command) == 0
    assert len(out.read_text().splitlines()) == 120
    reader = RankingReader(str(out))
    found = [reader.read_rankings(split) for split in ("train", "validation", "test")]
    assert sum(description["answers"] for _, description in found) == 120
    right = [rate_pairs(ranking) for rankings, _ in found for ranking in rankings]
    assert sum(map(sum, right)) / sum(map(len, right)) > 0.8
    assert found[0][1]["same_order"] > 0.8
    assert main(command) == 2
    assert "exists; --overwrite replaces it" in caplog.text
