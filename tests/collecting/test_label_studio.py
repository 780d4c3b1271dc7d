"""To Label Studio and back: nothing is lost on the way, and nothing is guessed."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from alignsum.commands import rank
from collecting.answer_file import AnswerFile, read_answers
from collecting.label_studio import make_interface, make_task, read_ranks, read_task
from datamodules.rankings import Answer
from tests.collecting.samples import make_answer, make_sample, make_samples, write_samples


def test_a_task_has_the_form_of_a_list_and_a_ranker() -> None:
    sample = make_sample(0)
    task = json.loads(json.dumps(make_task(sample, [make_answer(sample)], seed=42)))
    data = task["data"]
    assert (data["id"], data["dialogue"]) == (sample.id, sample.dialogue)
    assert {item["id"]: item["body"] for item in data["items"]} == {
        "c0": "a0", "c1": "b0", "c2": "c0", "c3": "d0",
    }  # fmt: skip
    assert [item["title"] for item in data["items"]] == ["A", "B", "C", "D"]
    assert [item["id"] for item in data["items"]] != ["c0", "c1", "c2", "c3"]  # shuffled
    (annotation,) = task["annotations"]
    results = {result["type"]: result for result in annotation["result"]}
    assert results["ranker"]["value"] == {
        "ranker": {"rank_1": ["c0"], "rank_2": ["c1", "c2"], "unusable": ["c3"], "_": []}
    }
    (toxic,) = [item["title"] for item in data["items"] if item["id"] == "c2"]
    assert results["choices"]["value"] == {"choices": [toxic]}
    # Every result is of a control and an object that the interface has.
    interface = ElementTree.fromstring(make_interface(4))  # noqa: S314 - our own
    names = {element.get("name"): element for element in interface.iter() if element.get("name")}
    for result in annotation["result"]:
        assert names[result["from_name"]].get("toName") == result["to_name"]
        assert result["to_name"] in names
    buckets = [bucket.get("name") for bucket in interface.iter("Bucket")]
    assert buckets == ["rank_1", "rank_2", "rank_3", "rank_4", "unusable"]
    for element in interface.iter():
        if (value := element.get("value", "")).startswith("$"):
            assert value[1:] in data


def test_there_and_back_nothing_is_lost(tmp_path: Path) -> None:
    samples = make_samples(3)
    given = [
        make_answer(samples[0]),
        make_answer(samples[0], "Bob <b>", ranks=(None,) * 4, toxic=(True,) * 4),
        make_answer(samples[1], ranks=None, toxic=(False,) * 4, seconds=None),
        make_answer(samples[1], "bob", ranks=(1, 1, 1, 1)),
    ]
    source = write_samples(tmp_path / "s.jsonl", samples)
    with AnswerFile(tmp_path / "a.jsonl") as file:
        file.append([make_answer(samples[0], ranks=(4, 3, 2, 1)), *given])  # changed afterwards
        file.append([make_answer(make_sample(9))])  # of another project
    tasks = tmp_path / "tasks.json"
    export = ["export", "--samples", str(source), "--output", str(tasks)]
    assert rank.main([*export, "--answers", str(tmp_path / "a.jsonl")]) == 0
    assert len(json.loads(tasks.read_text())) == 3
    for _ in range(2):  # the second time nothing is new
        back = ["import", "--input", str(tasks), "--answers", str(tmp_path / "b.jsonl")]
        assert rank.main(back) == 0
        assert read_answers(tmp_path / "b.jsonl") == given
        assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 4
    assert rank.main(export) == 2  # never over what is there
    assert rank.main([*export, "--overwrite", "true"]) == 0
    assert all(task["annotations"] == [] for task in json.loads(tasks.read_text()))


def test_what_label_studio_makes_of_it_is_read() -> None:
    """Its own ids, users and times; drafts and predictions beside the annotations."""
    task = json.loads(json.dumps(make_task(make_sample(0), [], seed=1)))
    place = {"from_name": "ranking", "to_name": "completions", "type": "ranker", "id": "x"}
    ranker = {"rank_1": ["c3"], "rank_2": [], "rank_3": ["c0", "c1", "c2"], "unusable": [], "_": []}
    task |= {"id": 17, "inner_id": 1, "drafts": [], "predictions": [{"result": []}], "project": 3}
    task["annotations"] = [
        {"completed_by": 5, "was_cancelled": False, "lead_time": 12.34,
         "created_at": "2025-01-01T00:00:00Z", "updated_at": "2025-01-01T00:01:00Z",
         "result": [place | {"value": {"ranker": ranker}, "origin": "manual"}]},
        {"completed_by": {"id": 6, "email": "bob@lab"}, "was_cancelled": True, "result": []},
    ]  # fmt: skip
    ranked, skipped = read_task(task)
    assert isinstance(ranked, Answer)
    assert isinstance(skipped, Answer)
    assert (ranked.annotator, ranked.ranks, ranked.seconds) == ("user 5", (2, 2, 2, 1), 12.3)
    assert ranked.time == "2025-01-01T00:01:00Z"
    assert ranked.sources == ("lora", "full_ft", "lora", "full_ft")
    assert (skipped.annotator, skipped.ranks) == ("bob@lab", None)


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        ({"rank_1": ["c0"], "rank_2": ["c1"], "_": ["c2"]}, "'c2' is unplaced"),
        ({"rank_1": ["c0", "c1"]}, "should not have, c2"),
        ({"rank_1": ["c0", "c1"], "rank_2": ["c1", "c2"]}, "'c1' is unplaced or placed twice"),
        ({"rank_1": ["c0", "c1", "c2", "c3"]}, "should not have, c3"),
        ({"relevant": ["c0"], "biased": ["c1", "c2"]}, "bucket 'relevant' is neither"),
        (["c0", "c1", "c2"], "lists of ids by bucket"),
    ],
)
def test_a_ranking_that_is_none_is_refused(ranker: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(ranker, 3)


def test_bad_annotations_stop_or_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = make_sample(0)
    good = make_task(sample, [make_answer(sample)], seed=1)
    nobody: dict[str, Any] = {"result": [], "was_cancelled": True}
    tasks = [
        good,
        good | {"annotations": [nobody, {"completed_by": 1, "result": []}]},
        {"data": {"dialogue": "d"}},
    ]
    source, answers = tmp_path / "t.json", tmp_path / "a.jsonl"
    source.write_text(json.dumps(tasks))
    command = ["import", "--input", str(source), "--answers", str(answers)]
    assert rank.main(command) == 2
    for message in (
        "3 bad row(s)", "task 2: an annotation has no annotator",
        "task 2: an annotation has no ranking", "task 3: its data has no list of items",
    ):  # fmt: skip
        assert message in caplog.text
    assert not answers.exists()
    assert rank.main([*command, "--on_bad_row", "skip"]) == 0
    assert len(read_answers(answers)) == 1
    for content, message in (("{", "is not an export"), ('{"a": 1}', "not a list of tasks")):
        source.write_text(content)
        assert rank.main(command) == 2
        assert message in caplog.text
