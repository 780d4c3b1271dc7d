"""The `frontier` command: arms, their numbers, and the choice among them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignsum.commands.frontier import main
from common.run_folder import RunFolder, write_lines, write_text
from metrics.intervals import bootstrap_crossed
from reporting.frontier import (
    Arm,
    choose,
    find_run_folders,
    make_arms,
    make_chart,
    make_json,
    tabulate_arms,
)
from reporting.runs import read_runs

BEFORE = [0.75, 0.25]


def write_run(
    path: Path, seed: int = 1, toxicity: tuple[float, float] = (0.25, 0.25),
    rouge1: tuple[float, float] = (0.5, 0.25), beta: float = 0.5, lr: float = 0.1,
    monitored: list[str] | None = None, evaluator: bool = False, monitor: str | None = None,
    **summary: Any,
) -> RunFolder:  # fmt: skip
    """A run on two dialogues; before PPO toxicity is 0.75 and 0.25, rouge1 0.5 and 0.5."""
    folder = RunFolder(path)
    model = {"init_args": {"ppo": {"kl_coef": beta}, "lr": lr}}
    trainer = {"default_root_dir": str(path), "precision": "32-true"}
    config = {"seed_everything": seed, "run_dir": str(path), "model": model, "trainer": trainer}
    config["checkpoint"] = {"dirpath": str(path), "monitor": monitor}
    write_text(folder.config, yaml.safe_dump(config))
    fields: dict[str, Any] = {"method": "ppo", "seed": seed} | summary
    if monitored is not None:
        fields["monitor"] = [{"condition": name, "step": 0, "message": ""} for name in monitored]
    folder.update_summary(**fields)
    rows = [
        {
            "id": str(i), "dialogue": f"#Person1#: {i}", "toxicity": toxicity[i],
            "toxicity_before": BEFORE[i], "rouge1": rouge1[i], "rouge1_before": 0.5,
            **({"evaluator": 1.0, "evaluator_before": 0.5} if evaluator else {}),
        }
        for i in range(2)
    ]  # fmt: skip
    write_lines(folder.predictions, rows)
    # Eight batches, of which the last quarter has KL 2 and 4, and a validation in between.
    kls = ["0", "1", "1", "1", "", "1", "9", "2", "4"]
    write_text(folder.metrics_csv, "step,objective/kl\n" + "".join(f"0,{kl}\n" for kl in kls))
    return folder


def arms_of(*folders: RunFolder, max_loss: float = 0.125) -> list[Arm]:
    runs, problems = read_runs([folder.path for folder in folders])
    assert problems == []
    return make_arms(runs, max_loss)


def row_of(arm: Arm, chosen: Arm | None = None) -> list[str]:
    return tabulate_arms([arm], chosen)[1]


def test_an_arm_by_hand(tmp_path: Path) -> None:
    (arm,) = arms_of(
        write_run(tmp_path / "a-seed1", 1, monitored=["kl", "hacking", "kl"], evaluator=True),
        write_run(
            tmp_path / "a-seed2", 2, (0.5, 0.25), (0.5, 0.5), monitored=["kl"], evaluator=True
        ),
    )
    assert arm.name == "a"
    first, second = arm.runs
    assert (first["seed"], first["toxicity_before"], first["toxicity"]) == (1, 0.5, 0.25)
    assert (first["halves"], first["keeps"]) == (True, True)  # exactly at both limits
    assert (second["toxicity"], second["rouge1_change"]) == (0.375, 0.0)
    assert (second["halves"], second["keeps"]) == (False, True)
    assert arm.reaches == 1
    assert arm.kl == first["kl"] == 3.0
    change = arm.estimates["toxicity_change"]
    assert change == bootstrap_crossed([[-0.5, 0.0], [-0.25, 0.0]])
    assert arm.estimates["rouge1_change"].value == -0.0625
    assert arm.warnings == {"hacking": 1, "kl": 2}
    assert row_of(arm) == [
        "a", "2", "50.0 → 31.2", "-18.8 (-50.0 to +0.0)\n-25.0 to -12.5",
        "-6.2 (-25.0 to +0.0)\n-12.5 to +0.0", "3.0", "50.0 → 100.0",
        "1 of 2", "2 of 2", "1 of 2", "hacking 1\nkl 2",
    ]  # fmt: skip
    assert row_of(arm, arm)[0] == "a *"


def test_a_run_just_beyond_the_limits(tmp_path: Path) -> None:
    (arm,) = arms_of(write_run(tmp_path / "a", toxicity=(0.2501, 0.25)), max_loss=0.1249)
    assert (arm.runs[0]["halves"], arm.runs[0]["keeps"]) == (False, False)
    assert choose([arm], 0.1249) is None
    assert choose([arm], 0.125) is arm


def test_single_runs_and_warnings_that_were_not_recorded(tmp_path: Path) -> None:
    unknown, silent = arms_of(
        write_run(tmp_path / "a"), write_run(tmp_path / "b", beta=2.0, monitored=[])
    )
    assert row_of(unknown)[3:7] == ["-25.0 (-50.0 to +0.0)", "-12.5 (-25.0 to +0.0)", "3.0", "-"]
    assert (row_of(unknown)[-1], row_of(silent)[-1]) == ("not recorded", "none")


def test_the_kl_of_an_earlier_checkpoint_is_unknown(tmp_path: Path) -> None:
    kept, last = write_run(tmp_path / "a", monitor="val/toxicity"), write_run(tmp_path / "b")
    arms = arms_of(kept, last)
    assert [row_of(arm)[5] for arm in arms] == ["-", "3.0"]
    content = json.loads(make_json(arms, None, 0.1))["arms"]
    assert [content[name]["kl"] for name in "ab"] == [None, 3.0]


def test_the_least_toxic_arm_that_keeps_rouge_is_chosen(tmp_path: Path) -> None:
    arms = arms_of(
        write_run(tmp_path / "safe", toxicity=(0.7, 0.2), rouge1=(0.5, 0.5), beta=3),
        write_run(tmp_path / "good", toxicity=(0.3, 0.2), rouge1=(0.5, 0.4), beta=2),
        write_run(tmp_path / "bold", toxicity=(0.0, 0.0), rouge1=(0.1, 0.1), beta=1),
    )
    for max_loss, name in ((0.1, "good"), (0.4, "bold"), (0.0, "safe")):
        chosen = choose(arms, max_loss)
        assert chosen is not None
        assert chosen.name == name
    assert choose(arms[1:], 0.0) is None
    chart = make_chart(arms, arms[1], 0.1)
    assert [dot.x.value for dot in chart.dots] == pytest.approx([-40, -5, 0])
    assert [dot.value.value for dot in chart.dots] == pytest.approx([0, 25, 45])
    labels = ["bold, beta 1", "good, beta 2 (chosen)", "safe, beta 3"]
    assert chart.lines == [labels]  # they differ only in the weight of the KL
    assert chart.target is not None
    assert chart.target[0] == -10


def test_runs_that_differ_only_in_their_seed_are_one_arm(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "low-seed1", 1, beta=0.1), write_run(tmp_path / "high-seed1", 1),
        write_run(tmp_path / "low-seed2", 2, beta=0.1), write_run(tmp_path / "other", 1, lr=0.2),
    ]  # fmt: skip
    arms = [(arm.name, len(arm.runs)) for arm in arms_of(*folders)]
    assert arms == [("low", 2), ("high-seed1", 1), ("other", 1)]


# The command --------------------------------------------------------------------------------------


def test_the_command_writes_table_numbers_and_plot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, out = tmp_path / "sweep", tmp_path / "out"
    for seed in (1, 2):
        write_run(sweep / f"low-seed{seed}", seed, beta=0.1, rouge1=(0.1, 0.1))
        write_run(sweep / f"high-seed{seed}", seed)
    (sweep / "report").mkdir()
    lora = write_run(tmp_path / "lora", method="lora")
    command = [str(sweep), str(lora.path), str(sweep / "low-seed1"), "--out", str(out)]
    assert main([*command, "--max_rouge_loss", "12.5"]) == 0
    assert "lora: trained by lora, not by ppo" in caplog.text
    page = (out / "frontier.md").read_text()
    assert r"| high \* | 2 | 50.0 → 25.0 |" in page
    assert "lora: trained by lora" in page
    found = json.loads((out / "frontier.json").read_text())
    assert found["chosen"] == "high"
    assert list(found["arms"]) == ["high", "low"]
    assert found["arms"]["low"]["estimates"]["rouge1_change"]["value"] == pytest.approx(-0.4)
    assert [run["seed"] for run in found["arms"]["low"]["runs"]] == [1, 2]
    with (out / "frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["high-seed1", "high-seed2", "low-seed1", "low-seed2"]
    assert (rows[0]["keeps"], rows[2]["keeps"], rows[0]["kl"]) == ("True", "False", "3.0")
    assert (out / "plots" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--max_rouge_loss", "1"]) == 0
    assert "so none is chosen" in (out / "frontier.md").read_text()


def test_folders_that_cannot_be_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untested = write_run(tmp_path / "untested", 2)
    untested.predictions.unlink()
    plain = write_run(tmp_path / "plain", 3)
    write_lines(plain.predictions, [{"id": "0", "rouge1": 1.0, "rouge1_before": 1.0}])
    paths = [str(path) for path in (untested.path, plain.path, tmp_path / "none")]
    assert main([*paths, "--out", str(tmp_path / "out")]) == 2
    for message in (
        "predictions.jsonl lacks toxicity, toxicity_before, rouge1, rouge1_before; test the run",
        "predictions.jsonl lacks toxicity, toxicity_before; test the run",
        "none: there is no such folder",
    ):
        assert message in caplog.text
    good = write_run(tmp_path / "good")
    assert main([str(good.path), "--max_rouge_loss", "-1"]) == 2
    assert "--max_rouge_loss must be 0 or more" in caplog.text


def test_folders_of_runs_are_searched(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep" / "a").path
    empty = tmp_path / "sweep" / "report"
    empty.mkdir()
    missing = tmp_path / "missing"
    assert find_run_folders([tmp_path / "sweep", run, missing, empty]) == [run, missing, empty]
