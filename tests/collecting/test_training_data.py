"""What the page saves is what a reward model and DPO learn from."""

from pathlib import Path

from collecting.answer_file import AnswerFile
from datamodules.rankings import keep_latest
from datamodules.rankings import read_answers as read_training_data
from tests.collecting.samples import make_answer, make_sample


def test_every_answer_is_read_and_the_last_one_counts(tmp_path: Path) -> None:
    sample = make_sample(0)
    given = [
        make_answer(sample),
        make_answer(sample, "bob", ranks=(1, 1, None, 2)),
        make_answer(sample, "cat", ranks=None),
        make_answer(sample, ranks=(4, 3, 2, 1)),  # ann thinks better of it
    ]
    with AnswerFile(tmp_path / "a.jsonl") as file:
        file.append(given)
        kept = file.answers
    reading = read_training_data(tmp_path / "a.jsonl")
    assert reading.problems == []
    assert [answer.ranks for answer in reading.answers] == [
        (1, 2, 2, None), (1, 1, None, 2), None, (4, 3, 2, 1),
    ]  # fmt: skip
    assert all(answer.completions == sample.completions for answer in reading.answers)
    last = {answer.annotator: answer.ranks for answer in keep_latest(reading.answers)}
    assert last == {name: mine["s0"].ranks for name, mine in kept.items()}
