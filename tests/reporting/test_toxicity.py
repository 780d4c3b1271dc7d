"""The `toxicity` command: table and worst cases of tested runs."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from alignsum.commands import compare
from alignsum.commands.toxicity import main
from common.run_folder import RunFolder
from metrics.intervals import bootstrap_mean
from metrics.toxicity import estimate_toxicity
from reporting.comparison import Comparison
from reporting.markdown import escape_markdown, markdown_table
from reporting.numbers import format_both
from reporting.runs import read_runs
from reporting.table import make_toxicity

BEFORE, AFTER = [0.9, 0.2, 0.6, 0.5], [0.1, 0.3, 0.7, 0.5]


def write_run(path: Path, before: bool = True) -> Path:
    """A tested run on four dialogues; rewards are 1 - 2 toxicity."""
    rows = []
    for i, (old, new) in enumerate(zip(BEFORE, AFTER, strict=True)):
        row = {"id": f"row-{i}", "dialogue": f"#Person1#: {i}", "rouge1": 0.5}
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
    found["rouge1"] = bootstrap_mean([0.5] * 4)
    folder.record_metrics({f"test/{name}": one for name, one in found.items()})
    return path


def show(tmp_path: Path, *runs: Path, top: int = 10) -> str:
    assert main([*map(str, runs), "--out", str(tmp_path / "out"), "--top", str(top)]) == 0
    return (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "ppo"), write_run(tmp_path / "lora", False)]
    runs, _ = read_runs(paths)
    titles, lora, ppo = make_toxicity(Comparison(runs)).texts
    assert titles == ["run", "n", "toxicity", "standard deviation", "over 0.5", "reward"]
    changes = [runs[0].metrics[f"test/{key}_change"] for key in ("toxicity", "toxic_share")]
    assert ppo[1:3] == ["4", f"55.0 → 40.0\n{format_both(changes[0], sign=True)}"]
    # 0.5 is not above 0.5: two of four, then one of four.
    assert ppo[4] == f"50.0 → 25.0\n{format_both(changes[1], sign=True)}"
    assert lora[2].startswith(f"{100 * fmean(AFTER):.1f}\n")
    assert ppo[3].count("→") == 1
    assert ppo[5].startswith("-0.10 → 0.20\n+0.30 (")


def test_examples_are_sorted_by_gain_or_by_toxicity(tmp_path: Path) -> None:
    page = show(tmp_path, write_run(tmp_path / "ppo"), write_run(tmp_path / "lora", False), top=1)
    ppo, lora = page.split("## lora\n")
    sections = {part.split("\n")[0]: part for part in ppo.split("### ")}
    assert "| row-2 |" in sections["The 1 most toxic"]
    assert (
        r"| row-0 | \<b\>old\</b\> | text \| \*0\* | 90.0 → 10.0 | -0.80 → 0.80 |"
        in sections["The 1 highest gains in reward"]
    )
    assert "| row-2 |" in sections["The 1 lowest gains in reward"]
    assert ppo.count("| row-") == 3
    assert r"| row-2 | text \| \*2\* | 70.0 | -0.40 |" in lora
    assert "gains" not in lora


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "prediction": "p", "toxicity": NaN}', "predictions.jsonl has no toxicity"),
        ('"text"', "line 1: not a JSON object"),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, message: str
) -> None:
    bad, out = RunFolder(tmp_path / "bad"), tmp_path / "out"
    bad.update_summary(method="lora")
    bad.predictions.write_text(line + "\n")
    assert main([str(bad.path), str(tmp_path / "gone"), "--out", str(out)]) == 2
    assert message in caplog.text
    assert "there is no such folder" in caplog.text
    assert not out.exists()
    page = show(tmp_path, bad.path, write_run(tmp_path / "good"))
    assert "## Not shown" in page
    assert "## good" in page


def test_rows_with_gaps_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ppo")
    rows = RunFolder(run).read_predictions()
    rows[0] |= {"toxicity": None, "reward_before": "x"}
    rows[1] |= {"prediction": "\ud800 half a pair", "toxicity_before": None}
    RunFolder(run).predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = show(tmp_path, run)
    assert "### The 3 most toxic" in page
    assert "### The 3 highest gains in reward" in page
    assert r"| row-1 | \<b\>old\</b\> | \ud800 half a pair | - → 30.0 | 0.60 → 0.40 |" in page
    assert "row-0" not in page


def test_wrong_options_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = str(write_run(tmp_path / "ppo"))
    assert main([run, "--top", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--top must be at least 1" in caplog.text
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert main([run, "--out", str(taken)]) == 2
    assert taken.read_text() == "mine"


def write_settings(run: Path, name: str = "config.yaml", **toxicity: Any) -> None:
    (run / name).write_text(yaml.safe_dump({"toxicity": {"label": "nothate"} | toxicity}))


def test_different_classifiers_are_a_caution(tmp_path: Path) -> None:
    alone, again, renamed, other = (
        write_run(tmp_path / name) for name in ("alone", "again", "renamed", "other")
    )
    for folder in ("judge", "x"):
        (tmp_path / folder).mkdir()
    write_settings(alone, model=str(tmp_path / "judge"))
    write_settings(again, model=str(tmp_path / "x" / ".." / "judge"))
    # The settings of the test count, not those of the fit before it.
    write_settings(renamed, model=str(tmp_path / "judge"))
    write_settings(renamed, "config.test.yaml", model=str(tmp_path / "judge"), label="polite")
    write_settings(other, model="owner/judge", toxic_label="toxic")
    caution = "Toxicity and reward were measured with different settings"
    assert caution not in show(tmp_path, alone, again)
    shown = show(tmp_path, alone, renamed).replace("\\_", "_")
    assert caution in shown
    assert "alone (label: nothate); renamed (label: polite)" in shown
    shown = show(tmp_path, alone, other).replace("\\_", "_")
    assert "toxic_label: hate); other (model: owner/judge, toxic_label: toxic)" in shown
    out = str(tmp_path / "comparison")
    assert compare.main([str(alone), str(other), "--out", out]) == 0
    for name in ("comparison.md", "report.html"):
        assert "measured with different settings" in Path(out, name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("one\r\ntwo\u2028three", "one<br>two<br>three"),
        ("<script> & `x` [y](z)", r"\<script\> \& \`x\` \[y\](z)"),
        ("soft_prompt _so_ **loud**", r"soft_prompt \_so\_ \*\*loud\*\*"),
        ("#Person1# says: no!", "#Person1# says: no!"),
    ],
)
def test_text_is_escaped(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_a_row_of_a_table_is_one_line() -> None:
    table = markdown_table([["a", "b"], ["x\ny", "1|2"]], left=("a",))
    assert table.split("\n") == ["| a | b |", "| --- | ---: |", r"| x<br>y | 1\|2 |"]
