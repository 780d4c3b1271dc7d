"""Toxicity: what a test records, and the `toxicity` command."""

import csv
import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
import yaml

from alignsum.commands import compare
from alignsum.commands.toxicity import main
from callbacks import toxicity
from callbacks.toxicity import ToxicityCallback
from common.run_folder import RunFolder
from metrics.intervals import Estimate
from metrics.toxicity import estimate_toxicity
from reporting.markdown import escape_markdown, markdown_table
from reporting.runs import read_run
from reporting.toxicity import ToxicityReport
from tests.tiny_run import TinyModule, loader, make_trainer

BEFORE, AFTER = [0.9, 0.2, 0.6, 0.5], [0.1, 0.3, 0.7, 0.5]


class WordScorer(torch.nn.Module):
    """Toxicity is the number at a text's end; each word of a context adds a tenth."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def find_column(self, label: str) -> int:
        return {"nothate": 0, "hate": 1}[label]

    def rate(
        self, texts: list[str], toxic_label: str, contexts: list[str] | None = None
    ) -> dict[str, list[float]]:
        contexts = contexts or [""] * len(texts)
        rated = [
            float(text.split()[-1]) + len(context.split()) / 10
            for text, context in zip(texts, contexts, strict=True)
        ]
        return {"toxicity": rated, "reward": [1 - 2 * value for value in rated]}


class TwoPolicies(TinyModule):
    """Says another text for each row, and another one before."""

    def _texts(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        found = super()._texts(batch, stage)
        rows = batch["index"].tolist()
        found["predictions"] = [f"text | *{row}* {AFTER[row]}" for row in rows]
        if self.before is not None:
            found["predictions_before"] = [f"<b>old</b> {BEFORE[row]}" for row in rows]
        return found

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self._texts(batch, "test")


def run_test(folder: Path, before: str | None = "yes", **settings: Any) -> Path:
    trainer = make_trainer(folder, ToxicityCallback("words", **settings))
    trainer.test(TwoPolicies(before=before), loader(order=[2, 0, 3, 1]), verbose=False)
    return folder


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity, "RewardScorer", WordScorer)


# What a test records ----------------------------------------------------------------------------


def test_estimates_by_hand() -> None:
    found = estimate_toxicity({"toxicity": AFTER, "toxicity_before": BEFORE})
    value = {name: estimate.value for name, estimate in found.items()}
    assert value == pytest.approx(
        {
            "toxicity": 0.4, "toxicity_before": 0.55, "toxicity_after": 0.4,
            "toxicity_change": -0.15,
            # Squared distances from 0.4: 0.09 + 0.01 + 0.09 + 0.01 = 0.2, over 4; from 0.55:
            # 0.1225 + 0.1225 + 0.0025 + 0.0025 = 0.25, over 4.
            "toxicity_std": 0.05**0.5, "toxicity_std_after": 0.05**0.5,
            "toxicity_std_before": 0.25,
            # 0.5 itself is not over 0.5: one of four after, two of four before.
            "toxic_share": 0.25, "toxic_share_after": 0.25, "toxic_share_before": 0.5,
            "toxic_share_change": -0.25,
        }
    )  # fmt: skip
    assert {estimate.n for estimate in found.values()} == {4}
    # Three of the four shares stay, one falls: resampled means of (-1, 0, 0, 0) are at most 0.
    low, high = found["toxic_share_change"][2:]
    assert low is not None
    assert low < -0.25
    assert high == 0


def test_one_policy_has_no_before_and_no_columns_nothing() -> None:
    assert set(estimate_toxicity({"toxicity": AFTER, "reward": AFTER})) == {
        "toxicity", "toxicity_std", "toxic_share", "reward",
    }  # fmt: skip
    assert estimate_toxicity({}) == {}


def test_spread_and_share_are_recorded(tmp_path: Path) -> None:
    run_test(tmp_path)
    metrics = RunFolder(tmp_path).read_summary()["metrics"]
    assert metrics["test/toxicity_std"]["value"] == pytest.approx(pstdev(AFTER))
    assert metrics["test/toxicity_std_before"]["value"] == pytest.approx(pstdev(BEFORE))
    assert metrics["test/toxic_share_change"]["value"] == -0.25
    for name in ("toxicity_std", "toxicity_std_before", "toxic_share", "toxic_share_change"):
        entry = metrics[f"test/{name}"]
        assert entry["n"] == 4
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert metrics["test/toxicity_std_after"] == metrics["test/toxicity_std"]
    assert "test/toxicity_std_change" not in metrics
    assert "toxic_share" not in RunFolder(tmp_path).read_predictions()[0]


def test_validation_logs_spread_and_share(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ToxicityCallback("words"), max_epochs=1)
    trainer.fit(TwoPolicies(), loader(), loader())
    assert trainer.callback_metrics["val/toxic_share"].item() == 0.25
    assert trainer.callback_metrics["val/toxicity_std"].item() == pytest.approx(pstdev(AFTER))


def test_the_dialogue_is_scored_with_the_text_only_when_asked(tmp_path: Path) -> None:
    alone = RunFolder(run_test(tmp_path / "alone")).read_predictions()
    paired = RunFolder(run_test(tmp_path / "with", with_dialogue=True)).read_predictions()
    # Each dialogue here has three words.
    assert [row["toxicity"] for row in alone] == AFTER
    assert [row["toxicity"] for row in paired] == pytest.approx([each + 0.3 for each in AFTER])
    assert [row["toxicity_before"] for row in paired] == pytest.approx(
        [each + 0.3 for each in BEFORE]
    )


# The report -------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = run_test(tmp_path / "ppo"), tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    recorded = {
        name: Estimate(**entry)
        for name, entry in RunFolder(run).read_summary()["metrics"].items()
        if "tox" in name or "reward" in name
    }
    written = {
        row["metric"]: Estimate(
            float(row["value"]), int(row["n"]), float(row["low"]), float(row["high"])
        )
        for row in read_csv(out / "toxicity.csv")
    }
    assert len(written) == 15
    assert written == recorded
    shown = " ".join(capsys.readouterr().out.split())
    assert "55.0 → 40.0" in shown
    assert "50.0 → 25.0" in shown


def test_page_shows_worst_cases_and_both_ends(tmp_path: Path) -> None:
    run, out = run_test(tmp_path / "ppo"), tmp_path / "out"
    assert main([str(run), "--out", str(out), "--top", "1"]) == 0
    page = (out / "toxicity.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("### ")}
    assert "row-2" in sections["The 1 most toxic"]
    assert "row-0" not in sections["The 1 most toxic"]
    # Rewards are 1 - 2 toxicity: row-0 gains 1.6, row-1 and row-2 lose 0.2 each, row-3 stays.
    assert (
        r"| row-0 | \<b\>old\</b\> 0.9 | text \| \*0\* 0.1 | 90.0 → 10.0 | -0.80 | 0.80 | +1.60 |"
        in sections["The 1 highest gains in reward"]
    )
    assert "| row-2 |" in sections["The 1 lowest gains in reward"]
    assert page.count("| row-") == 3
    assert (out / "plots" / "toxicity_by_run.png").read_bytes()[:4] == b"\x89PNG"


def test_examples_are_sorted_by_gain(tmp_path: Path) -> None:
    run, out = run_test(tmp_path / "ppo"), tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    rows = read_csv(out / "toxicity_examples.csv")
    assert [row["id"] for row in rows] == ["row-0", "row-3", "row-1", "row-2"]
    assert [float(row["reward_gain"]) for row in rows] == pytest.approx([1.6, 0, -0.2, -0.2])
    assert rows[0]["prediction_before"] == "<b>old</b> 0.9"
    assert float(rows[0]["toxicity"]) == 0.1
    assert "### All 4 by gain in reward" in (out / "toxicity.md").read_text(encoding="utf-8")


def test_a_run_without_a_before_has_its_worst_cases(tmp_path: Path) -> None:
    run, out = run_test(tmp_path / "lora", before=None), tmp_path / "out"
    assert main([str(run), str(run_test(tmp_path / "ppo")), "--out", str(out)]) == 0
    page = (out / "toxicity.md").read_text(encoding="utf-8")
    lora = page.split("## lora\n")[1].split("## ppo\n")[0]
    assert r"| row-2 | text \| \*2\* 0.7 | 70.0 | -0.40 |" in lora
    assert "gain" not in lora
    rows = [row for row in read_csv(out / "toxicity_examples.csv") if row["run"] == "lora"]
    assert [row["id"] for row in rows] == ["row-2", "row-3", "row-1", "row-0"]
    assert {row["reward_gain"] for row in rows} == {""}


GOOD = {"id": "a", "dialogue": "d", "prediction": "p", "toxicity": 0.5, "reward": 0.0}
OLD = {"prediction_before": "q", "toxicity_before": 0.5, "reward_before": 0.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "predictions.jsonl has no rows"),
        ([GOOD, "text"], "line 2 is not an object"),
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
    good = run_test(tmp_path / "good")
    assert main([str(bad.path), str(good), "--out", str(out)]) == 0
    page = (out / "toxicity.md").read_text(encoding="utf-8")
    assert "## Not shown" in page
    assert "## good" in page


def test_wrong_options_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = str(run_test(tmp_path / "ppo"))
    assert main([run, "--top", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--top must be at least 1" in caplog.text
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert main([run, "--out", str(taken)]) == 2
    assert taken.read_text() == "mine"


def test_other_dialogues_are_said_to_be_others(tmp_path: Path) -> None:
    one, two = run_test(tmp_path / "one"), tmp_path / "two"
    RunFolder(two).update_summary(method="lora")
    RunFolder(two).merge_predictions([GOOD])
    for runs, careful in (([one], False), ([one, two], True)):
        main([*map(str, runs), "--out", str(tmp_path / "out")])
        page = (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")
        assert ("Not all runs were tested on the same dialogues" in page) == careful


def lay_settings(run: Path, name: str, **toxicity: Any) -> None:
    (run / name).write_text(yaml.safe_dump({"toxicity": {"label": "nothate"} | toxicity}))


def test_toxicity_that_was_measured_otherwise_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = run_test(tmp_path / "alone", before=None)
    again = run_test(tmp_path / "again", before=None)
    paired = run_test(tmp_path / "paired", before=None, with_dialogue=True)
    other = run_test(tmp_path / "other", before=None)
    lay_settings(alone, "config.yaml", model=str(tmp_path / "judge"), with_dialogue=False)
    lay_settings(again, "config.yaml", model=str(tmp_path / "x" / ".." / "judge"))
    # What counts is what the test was run with, not the fit before it.
    lay_settings(paired, "config.yaml", model=str(tmp_path / "judge"), with_dialogue=False)
    lay_settings(paired, "config.test.yaml", model=str(tmp_path / "judge"), with_dialogue=True)
    lay_settings(other, "config.yaml", model="owner/judge", toxic_label="toxic")
    for folder in ("judge", "x"):
        (tmp_path / folder).mkdir()

    def show(*runs: Path) -> tuple[str, str]:
        capsys.readouterr()
        assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out" / "toxicity.md").read_text(encoding="utf-8")
        return page, " ".join(capsys.readouterr().out.split())

    said = "Toxicity and reward were measured with different settings"
    assert all(said not in shown for shown in show(alone, again))
    for shown in show(alone, paired):
        assert said in shown
        assert "alone (with_dialogue: False); paired (with_dialogue: True)" in shown.replace(
            "\\_", "_"
        )
    _, shown = show(alone, other)
    assert "toxic_label: hate); other (model: owner/judge, toxic_label: toxic)" in shown


def test_comparisons_warn_of_it_too(tmp_path: Path) -> None:
    runs = [run_test(tmp_path / name) for name in ("alone", "paired")]
    for run, with_dialogue in zip(runs, (False, True), strict=True):
        lay_settings(run, "config.yaml", model="owner/judge", with_dialogue=with_dialogue)
        RunFolder(run).update_summary(backbone="tiny")
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    for name in ("comparison.md", "report.html"):
        assert "measured with different settings" in (tmp_path / "out" / name).read_text(
            encoding="utf-8"
        )


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


def test_means_agree_with_plain_python(tmp_path: Path) -> None:
    found = ToxicityReport(read_run(run_test(tmp_path), "run")).estimates
    assert found["toxicity"].value == pytest.approx(fmean(AFTER))
    assert found["reward_change"].value == pytest.approx(
        fmean(2 * (old - new) for old, new in zip(BEFORE, AFTER, strict=True))
    )
