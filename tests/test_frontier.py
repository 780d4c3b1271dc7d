"""`report.py frontier`: which runs belong together, what is said of them, what is chosen."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignsum import __main__ as report
from common.run_folder import RunFolder, write_lines, write_text
from metrics.intervals import bootstrap_crossed
from reporting.frontier import Arm, choose, count_warnings, lines_of_betas, make_arms
from reporting.frontier_figures import draw_frontier
from reporting.frontier_runs import find_runs, group, read_ppo_run, read_ppo_runs
from reporting.frontier_tables import make_json, make_row

BEFORE = [0.75, 0.25]


def write_run(
    path: Path, seed: int = 1, toxicity: tuple[float, float] = (0.25, 0.25),
    rouge1: tuple[float, float] = (0.5, 0.25), beta: float = 0.5, lr: float = 0.1,
    watch: list[str] | None = None, judge: bool = False, monitor: str | None = None, **summary: Any,
) -> RunFolder:  # fmt: skip
    """A run of two dialogues, whose toxicity was 0.75 and 0.25, and rouge1 0.5 and 0.5."""
    folder = RunFolder(path)
    model = {"init_args": {"ppo": {"kl_coef": beta}, "lr": lr}}
    trainer = {"default_root_dir": str(path), "precision": "32-true"}
    config = {"seed_everything": seed, "run_dir": str(path), "model": model, "trainer": trainer}
    config["checkpoint"] = {"dirpath": str(path), "monitor": monitor}
    write_text(folder.config, yaml.safe_dump(config))
    fields: dict[str, Any] = {"method": "ppo", "seed": seed} | summary
    if watch is not None:
        fields["watch"] = [{"condition": name, "step": 0, "message": ""} for name in watch]
    folder.update_summary(**fields)
    rows = [
        {
            "id": str(i), "dialogue": f"#Person1#: {i}", "toxicity": toxicity[i],
            "toxicity_before": BEFORE[i], "rouge1": rouge1[i], "rouge1_before": 0.5,
            **({"judge": 1.0, "judge_before": 0.5} if judge else {}),
        }
        for i in range(2)
    ]  # fmt: skip
    write_lines(folder.predictions, rows)
    # Eight batches, of which the last quarter has KL 2 and 4, and a validation between.
    kls = ["0", "1", "1", "1", "", "1", "9", "2", "4"]
    write_text(folder.metrics_csv, "step,objective/kl\n" + "".join(f"0,{kl}\n" for kl in kls))
    return folder


def arms_of(*folders: RunFolder, max_loss: float = 0.125) -> list[Arm]:
    return make_arms(group([read_ppo_run(folder.path) for folder in folders]), max_loss)


# Numbers ----------------------------------------------------------------------------------------


def test_an_arm_by_hand(tmp_path: Path) -> None:
    (arm,) = arms_of(
        write_run(tmp_path / "a-seed1", 1, watch=["kl", "hacking", "kl"], judge=True),
        write_run(tmp_path / "a-seed2", 2, (0.5, 0.25), (0.5, 0.5), watch=["kl"], judge=True),
    )
    assert arm.name == "a"
    first, second = arm.outcomes
    assert (first.seed, first.toxicity_before, first.toxicity_after) == (1, 0.5, 0.25)
    assert (first.toxicity_change, first.relative_change) == (-0.25, -0.5)
    assert (first.halves, first.keeps) == (True, True)  # both just so: 0.25 of 0.5, -0.125
    assert (second.toxicity_after, second.rouge1_change) == (0.375, 0.0)
    assert (second.halves, second.keeps) == (False, True)
    assert arm.reaches == 1
    assert arm.kl == first.kl == 3.0
    change = arm.estimates["toxicity_change"]
    assert change == bootstrap_crossed([[-0.5, 0.0], [-0.25, 0.0]])
    assert change.value == -0.1875
    assert arm.estimates["rouge1_change"].value == -0.0625
    assert arm.estimates["judge_change"].value == 0.5
    assert count_warnings(arm) == {"hacking": 1, "kl": 2}
    assert make_row(arm, None) == [
        "a", "2", "50.0 → 31.2", "-18.8 (-50.0 to +0.0)\n-25.0 to -12.5",
        "-6.2 (-25.0 to +0.0)\n-12.5 to +0.0", "3.0\n3.0 to 3.0", "50.0 → 100.0",
        "1 of 2", "2 of 2", "1 of 2", "hacking 1\nkl 2",
    ]  # fmt: skip
    assert make_row(arm, arm)[0] == "a *"


def test_a_little_more_is_lost_than_may_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", toxicity=(0.2501, 0.25))
    (arm,) = arms_of(folder, max_loss=0.1249)
    assert (arm.outcomes[0].halves, arm.outcomes[0].keeps) == (False, False)
    assert not arm.keeps(0.1249)
    assert arm.keeps(0.125)


def test_one_run_has_no_spread_and_may_know_nothing_of_the_watch(tmp_path: Path) -> None:
    unknown, silent = arms_of(
        write_run(tmp_path / "a"), write_run(tmp_path / "b", beta=2.0, watch=[])
    )
    assert make_row(unknown, None)[3:7] == [
        "-25.0 (-50.0 to +0.0)", "-12.5 (-25.0 to +0.0)", "3.0", "-",
    ]  # fmt: skip
    assert make_row(unknown, None)[-1] == "not recorded"
    assert make_row(silent, None)[-1] == "silent"


def test_the_kl_of_an_earlier_checkpoint_is_not_that_of_the_end(tmp_path: Path) -> None:
    kept, last = write_run(tmp_path / "a", monitor="val/toxicity"), write_run(tmp_path / "b")
    arms = arms_of(kept, last)
    assert [make_row(arm, None)[5] for arm in arms] == ["-", "3.0"]
    content = json.loads(make_json(arms, None, 0.1))["arms"]
    assert [(content[name]["kl"], content[name]["runs"][0]["kl"]) for name in "ab"] == [
        (None, None), (3.0, 3.0),
    ]  # fmt: skip
    draw_frontier(tmp_path / "f.png", arms, None, 0.1)  # hollow, and no complaint


def test_the_least_toxic_of_those_that_keep_rouge_is_chosen(tmp_path: Path) -> None:
    arms = arms_of(
        write_run(tmp_path / "safe", toxicity=(0.7, 0.2), rouge1=(0.5, 0.5), beta=3),
        write_run(tmp_path / "good", toxicity=(0.3, 0.2), rouge1=(0.5, 0.4), beta=2),
        write_run(tmp_path / "bold", toxicity=(0.0, 0.0), rouge1=(0.1, 0.1), beta=1),
    )
    assert [arm.name for arm in arms] == ["safe", "good", "bold"]
    for max_loss, name in ((0.1, "good"), (0.4, "bold"), (0.0, "safe")):
        chosen = choose(arms, max_loss)
        assert chosen is not None
        assert chosen.name == name
    assert choose(arms[1:], 0.0) is None


# Which runs belong together ---------------------------------------------------------------------


def test_runs_that_differ_in_nothing_but_the_seed_are_one_arm(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "low-seed1", 1, beta=0.1), write_run(tmp_path / "high-seed1", 1),
        write_run(tmp_path / "low-seed2", 2, beta=0.1), write_run(tmp_path / "other", 1, lr=0.2),
        write_run(tmp_path / "other-s2", 1, lr=0.3),
    ]  # fmt: skip
    arms = arms_of(*folders)
    # Two of another lr would be called "other"; so they keep their whole names.
    assert [(arm.name, len(arm.outcomes)) for arm in arms] == [
        ("low", 2), ("high", 1), ("other", 1), ("other-s2", 1),
    ]  # fmt: skip
    (line,) = lines_of_betas(arms)
    assert [(arm.name, arm.kl_coef) for arm in line] == [("low", 0.1), ("high", 0.5)]


def test_runs_that_cannot_be_one_arm_are_refused(tmp_path: Path) -> None:
    first, again = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    with pytest.raises(ValueError, match=r"a, b: equal settings, and the seeds are \[1, 1\]"):
        arms_of(first, again)
    other = write_run(tmp_path / "c", 2)
    write_lines(other.predictions, [row | {"id": "x"} for row in other.read_predictions()])
    with pytest.raises(ValueError, match="a: its runs were not tested on the same dialogues"):
        arms_of(first, other)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    untested = write_run(tmp_path / "untested", 2)
    untested.predictions.unlink()
    plain = write_run(tmp_path / "plain", 3)
    rows = [{"id": "0", "rouge1": 1.0, "rouge1_before": 1.0}]
    write_lines(plain.predictions, rows)
    lora = write_run(tmp_path / "lora", 4, method="lora")
    old = write_run(tmp_path / "old", 5)
    write_text(old.metrics_csv, "step\n0\n")
    good = write_run(tmp_path / "good", 6)
    paths = [untested.path, plain.path, lora.path, old.path, tmp_path / "none", good.path]
    runs, problems = read_ppo_runs(paths)
    assert [run.name for run in runs] == ["good"]
    for problem, said in zip(
        problems,
        (
            "predictions.jsonl is not there or empty; test the run",
            "predictions.jsonl is without toxicity, toxicity_before; test",
            "it holds a run by lora, not by ppo",
            "not as a run leaves it (KeyError('objective/kl'))",
            "no summary.json",
        ),
        strict=True,
    ):
        assert said in problem


# The command ------------------------------------------------------------------------------------


def test_the_command_writes_table_numbers_and_plots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, out = tmp_path / "sweep", tmp_path / "out"
    for seed in (1, 2):
        write_run(sweep / f"low-seed{seed}", seed, beta=0.1, rouge1=(0.1, 0.1))
        write_run(sweep / f"high-seed{seed}", seed)
    (sweep / "report").mkdir()
    lora = write_run(tmp_path / "lora", method="lora")
    command = ["frontier", str(sweep), str(lora.path), str(sweep / "low-seed1"), "--out", str(out)]
    assert report.main([*command, "--max_rouge_loss", "12.5"]) == 0
    assert "lora: it holds a run by lora" in caplog.text
    assert "high *" in capsys.readouterr().out
    page = (out / "frontier.md").read_text()
    assert "| high * | 2 | 50.0 → 25.0 |" in page
    assert "lora: it holds a run by lora" in page
    found = json.loads((out / "frontier.json").read_text())
    assert found["chosen"] == "high"
    assert list(found["arms"]) == ["high", "low"]
    assert found["arms"]["low"]["estimates"]["rouge1_change"]["value"] == pytest.approx(-0.4)
    assert [run["seed"] for run in found["arms"]["low"]["runs"]] == [1, 2]
    with (out / "frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["high-seed1", "high-seed2", "low-seed1", "low-seed2"]
    assert (rows[0]["keeps"], rows[2]["keeps"], rows[0]["kl"]) == ("True", "False", "3.0")
    for name in ("seeds", "frontier"):
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "plots" / "frontier.png").read_bytes()
    assert report.main([*command, "--max_rouge_loss", "1"]) == 0
    assert "so none is chosen" in (out / "frontier.md").read_text()
    assert (out / "plots" / "frontier.png").read_bytes() != before


def test_the_command_says_what_it_cannot_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert report.main(["frontier", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "none: there is no summary.json" in caplog.text
    assert "There is no tested PPO run to show" in caplog.text
    run = write_run(tmp_path / "a")
    assert report.main(["frontier", str(run.path), "--max_rouge_loss", "-1"]) == 2
    assert "--max_rouge_loss must be 0 or more" in caplog.text


def test_folders_of_runs_are_looked_into_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep" / "a").path
    (tmp_path / "sweep" / "report").mkdir()
    missing = tmp_path / "missing"
    assert find_runs([tmp_path / "sweep", run, missing]) == [run, missing]
    assert find_runs([tmp_path / "sweep" / "report"]) == [tmp_path / "sweep" / "report"]
