"""The `toxicity` command: table, page and files of tested runs."""

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from alignsum.commands import compare
from alignsum.commands.toxicity import main
from common.run_folder import RunFolder
from metrics.intervals import Estimate
from metrics.toxicity import estimate_toxicity
from reporting.markdown import escape_markdown, markdown_table
from reporting.runs import read_run
from reporting.toxicity import ToxicityReport

BEFORE, AFTER = [0.9, 0.2, 0.6, 0.5], [0.1, 0.3, 0.7, 0.5]


def write_run(path: Path, before: bool = True) -> Path:
    """A tested run on four dialogues; rewards are 1 - 2 toxicity."""
    rows = []
    for i, (old, new) in enumerate(zip(BEFORE, AFTER, strict=True)):
        row = {"id": f"row-{i}", "dialogue": f"#Person1#: {i}"}
        for end, text, value in (("", f"text | *{i}*", new), ("_before", "<b>old</b>", old)):
            if not end or before:
                row |= {f"prediction{end}": text, f"toxicity{end}": value}
                row[f"reward{end}"] = 1 - 2 * value
        rows.append(row)
    folder = RunFolder(path)
    folder.update_summary(method="ppo" if before else "lora", backbone="tiny")
    folder.merge_predictions(rows)
    names = [name for name in rows[0] if name.startswith(("toxicity", "reward"))]
    found = estimate_toxicity({name: [row[name] for row in rows] for name in names})
    folder.record_metrics({f"test/{name}": one for name, one in found.items()})
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path / "ppo"), tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    metrics = RunFolder(run).read_summary()["metrics"]
    written = {
        row["metric"]: Estimate(
            float(row["value"]), int(row["n"]), float(row["low"]), float(row["high"])
        )
        for row in read_csv(out / "toxicity.csv")
    }
    assert len(written) == 15
    assert written == {name: Estimate(**entry) for name, entry in metrics.items()}
    assert written["test/toxicity"].value == pytest.approx(fmean(AFTER))
    shown = capsys.readouterr().out
    assert "55.0 → 40.0" in shown
    assert "50.0 → 25.0" in shown  # 0.5 is not above 0.5: two of four, then one of four


def test_page_shows_worst_cases_and_both_ends(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "ppo"), tmp_path / "out"
    assert main([str(run), "--out", str(out), "--top", "1"]) == 0
    page = (out / "toxicity.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("### ")}
    assert "row-2" in sections["The 1 most toxic"]
    assert "row-0" not in sections["The 1 most toxic"]
    assert (
        r"| row-0 | \<b\>old\</b\> | text \| \*0\* | 90.0 → 10.0 | -0.80 | 0.80 | +1.60 |"
        in sections["The 1 highest gains in reward"]
    )
    assert "| row-2 |" in sections["The 1 lowest gains in reward"]
    assert page.count("| row-") == 3
    assert (out / "plots" / "toxicity_by_run.png").read_bytes()[:4] == b"\x89PNG"


def test_examples_are_sorted_by_gain_or_by_toxicity(tmp_path: Path) -> None:
    paths, out = [write_run(tmp_path / "ppo"), write_run(tmp_path / "lora", False)], tmp_path / "o"
    assert main([*map(str, paths), "--out", str(out)]) == 0
    rows = read_csv(out / "toxicity_examples.csv")
    assert [row["id"] for row in rows[:4]] == ["row-0", "row-3", "row-1", "row-2"]
    assert [float(row["reward_gain"]) for row in rows[:4]] == pytest.approx([1.6, 0, -0.2, -0.2])
    assert [row["id"] for row in rows[4:]] == ["row-2", "row-3", "row-1", "row-0"]
    assert {row["reward_gain"] for row in rows[4:]} == {""}
    ppo, lora = (out / "toxicity.md").read_text(encoding="utf-8").split("## lora\n")
    assert "### All 4 by gain in reward" in ppo
    assert r"| row-2 | text \| \*2\* | 70.0 | -0.40 |" in lora
    assert "gain" not in lora


GOOD = {"id": "a", "dialogue": "d", "prediction": "p", "toxicity": 0.5, "reward": 0.0}
OLD = {"prediction_before": "q", "toxicity_before": 0.5, "reward_before": 0.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "predictions.jsonl has no rows"),
        ([GOOD, "text"], "line 2: not a JSON object"),
        ([{**GOOD, "prediction": None}], "line 1: prediction is not a text"),
        ([{"id": "a", "prediction": "p"}], "no toxicity; test with a classifier"),
        ([{**GOOD, "prediction": "\ud800"}], "line 1 is not UTF-8"),
        ([{**GOOD, "toxicity": "0.5"}], "toxicity is '0.5', not a finite number"),
        ([{**GOOD, "toxicity": 1.5}], "toxicity is not a probability"),
        ([{**GOOD, "toxicity": float("nan")}], "toxicity is nan, not a finite number"),
        ([{**GOOD, **OLD, "reward_before": True}], "reward_before is True"),
        ([{**GOOD, "prediction_before": "q"}], "no toxicity_before"),
        ([GOOD, {**GOOD, **OLD, "id": "b"}], "only some rows have a prediction_before"),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: Any, message: str
) -> None:
    bad, out = RunFolder(tmp_path / "bad"), tmp_path / "out"
    bad.update_summary(method="lora")
    if rows is not None:
        bad.predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(bad.path), str(tmp_path / "gone"), "--out", str(out)]) == 2
    assert message in caplog.text
    assert "there is no such folder" in caplog.text
    assert not out.exists()
    good = write_run(tmp_path / "good")
    assert main([str(bad.path), str(good), "--out", str(out)]) == 0
    page = (out / "toxicity.md").read_text(encoding="utf-8")
    assert "## Not shown" in page
    assert "## good" in page


def test_wrong_options_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = str(write_run(tmp_path / "ppo"))
    assert main([run, "--top", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--top must be at least 1" in caplog.text
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert main([run, "--out", str(taken)]) == 2
    assert taken.read_text() == "mine"


def test_other_dialogues_are_said_to_be_others(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), tmp_path / "two"
    RunFolder(two).update_summary(method="lora")
    RunFolder(two).merge_predictions([GOOD])
    for runs, careful in (([one], False), ([one, two], True)):
        main([*map(str, runs), "--out", str(tmp_path / "out")])
        page = (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")
        assert ("Not all runs were tested on the same dialogues" in page) == careful


def write_settings(run: Path, name: str = "config.yaml", **toxicity: Any) -> None:
    (run / name).write_text(yaml.safe_dump({"toxicity": {"label": "nothate"} | toxicity}))


def test_different_classifiers_are_a_caution(tmp_path: Path) -> None:
    alone, again, paired, other = (
        write_run(tmp_path / name) for name in ("alone", "again", "paired", "other")
    )
    for folder in ("judge", "x"):
        (tmp_path / folder).mkdir()
    write_settings(alone, model=str(tmp_path / "judge"), with_dialogue=False)
    write_settings(again, model=str(tmp_path / "x" / ".." / "judge"))
    # The settings of the test count, not those of the fit before it.
    write_settings(paired, model=str(tmp_path / "judge"), with_dialogue=False)
    write_settings(paired, "config.test.yaml", model=str(tmp_path / "judge"), with_dialogue=True)
    write_settings(other, model="owner/judge", toxic_label="toxic")

    def show(*runs: Path) -> str:
        assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")
        return page.replace("\\_", "_")

    caution = "Toxicity and reward were measured with different settings"
    assert caution not in show(alone, again)
    shown = show(alone, paired)
    assert caution in shown
    assert "alone (with_dialogue: False); paired (with_dialogue: True)" in shown
    assert "toxic_label: hate); other (model: owner/judge, toxic_label: toxic)" in show(
        alone, other
    )
    out = str(tmp_path / "comparison")
    assert compare.main([str(alone), str(other), "--out", out]) == 0
    for name in ("comparison.md", "report.html"):
        assert "measured with different settings" in Path(out, name).read_text(encoding="utf-8")


def test_a_single_row_has_no_interval(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "one")
    folder.update_summary(method="ppo")
    folder.merge_predictions([{**GOOD, **OLD}])
    found = ToxicityReport(read_run(folder.path, "one"))
    assert found.estimates["toxicity_std"] == Estimate(0.0, 1)
    assert main([str(folder.path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")
    assert "| one | 1 | 50.0 → 50.0<br>+0.0 |" in page


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("one\r\ntwo\u2028three", "one<br>two<br>three"),
        ("<script> & `x` [y](z)", r"\<script\> \& \`x\` \[y\](z)"),
        ("soft_prompt _so_ **loud**", r"soft_prompt \_so\_ \*\*loud\*\*"),
        ("__init__", r"\_\_init\_\_"),
        ("$5 or ~3~ \\", r"\$5 or \~3\~ \\"),
        ("#Person1# says: no!", "#Person1# says: no!"),
    ],
)
def test_text_is_escaped(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_a_row_of_a_table_is_one_line() -> None:
    table = markdown_table([["a", "b"], ["x\ny", "1|2"]], left=("a",))
    assert table.split("\n") == ["| a | b |", "| --- | ---: |", r"| x<br>y | 1\|2 |"]
