"""The `frontier` command: arms, their numbers, and the choice among them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignsum.commands.frontier import main
from common.run_folder import RunFolder, write_lines, write_text
from metrics.intervals import bootstrap_crossed, estimate_columns
from reporting.comparison import Comparison
from reporting.frontier import Frontier, find_run_folders
from reporting.runs import read_runs

BEFORE = [0.75, 0.25]


def write_run(
    path: Path, seed: int = 1, toxicity: tuple[float, float] = (0.25, 0.25),
    rouge1: tuple[float, float] = (0.5, 0.25), beta: float = 0.5,
    monitored: list[str] | None = None, evaluator: bool = False, monitor: str | None = None,
    method: str = "ppo",
) -> RunFolder:  # fmt: skip
    """A run on two dialogues; before PPO toxicity is 0.75 and 0.25, rouge1 0.5 and 0.5."""
    folder = RunFolder(path)
    config = {
        "seed_everything": seed, "run_dir": str(path), "checkpoint": {"monitor": monitor},
        "model": {"init_args": {"ppo": {"kl_coef": beta}}},
    }  # fmt: skip
    write_text(folder.config, yaml.safe_dump(config))
    fields: dict[str, Any] = {"method": method, "seed": seed}
    if monitored is not None:
        fields["monitor"] = [{"condition": name, "step": 0, "message": ""} for name in monitored]
    folder.update_summary(**fields)
    columns = {"toxicity_before": BEFORE, "toxicity": toxicity, "rouge1": rouge1}
    columns["rouge1_before"] = [0.5, 0.5]
    if evaluator:
        columns |= {"evaluator": [1.0, 1.0], "evaluator_before": [0.5, 0.5]}
    folder.record_metrics({f"test/{k}": one for k, one in estimate_columns(columns).items()})
    rows = [{name: column[i] for name, column in columns.items()} for i in range(2)]
    write_lines(folder.predictions, [{"id": str(i)} | row for i, row in enumerate(rows)])
    # Eight batches, of which the last quarter has KL 2 and 4, and a validation in between.
    kls = ["0", "1", "1", "1", "", "1", "9", "2", "4"]
    write_text(folder.metrics_csv, "step,objective/kl\n" + "".join(f"0,{kl}\n" for kl in kls))
    return folder


def weigh(*folders: RunFolder, max_loss: float = 0.125) -> Frontier:
    runs, problems = read_runs([folder.path for folder in folders])
    assert problems == []
    return Frontier(Comparison(runs), max_loss)


def test_an_arm_by_hand(tmp_path: Path) -> None:
    found = weigh(
        write_run(tmp_path / "a-seed1", 1, monitored=["kl", "hacking", "kl"], evaluator=True),
        write_run(
            tmp_path / "a-seed2", 2, (0.5, 0.25), (0.5, 0.5), monitored=["kl"], evaluator=True
        ),
    )
    first, second = found.measure_runs(0)
    assert (first["seed"], first["toxicity_before"], first["toxicity"]) == (1, 0.5, 0.25)
    assert (first["halves"], first["keeps"]) == (True, True)  # exactly at both limits
    assert (second["toxicity"], second["rouge1_change"]) == (0.375, 0.0)
    assert (second["halves"], second["keeps"]) == (False, True)
    change = found.comparison.change(0, "toxicity")
    assert change == bootstrap_crossed([[-0.5, 0.0], [-0.25, 0.0]])
    assert found.tabulate()[1] == [
        "a *", "2", "50.0 → 31.2\n-18.8 (-50.0 to +0.0)\nseeds: -25.0 to -12.5",
        "50.0 → 43.8\n-6.2 (-25.0 to +0.0)\nseeds: -12.5 to +0.0", "3.0", "50.0 → 100.0",
        "1 of 2", "2 of 2", "1 of 2", "hacking 1\nkl 2",
    ]  # fmt: skip


def test_a_run_just_beyond_the_limits(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", toxicity=(0.2501, 0.25))
    (run,) = weigh(folder, max_loss=0.1249).measure_runs(0)
    assert (run["halves"], run["keeps"]) == (False, False)
    assert weigh(folder, max_loss=0.1249).chosen is None
    assert weigh(folder, max_loss=0.125).chosen == 0


def test_what_was_not_recorded_is_said_to_be_unknown(tmp_path: Path) -> None:
    _, unknown, kept = weigh(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", beta=2.0, monitored=[], monitor="val/toxicity"),
    ).tabulate()
    assert (unknown[4], unknown[5], unknown[-1]) == ("3.0", "-", "not recorded")
    assert (kept[4], kept[-1]) == ("-", "none")  # the KL of an earlier checkpoint
    assert "seeds" not in unknown[2]


def test_the_least_toxic_arm_that_keeps_rouge_is_chosen(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "safe", toxicity=(0.7, 0.2), rouge1=(0.5, 0.5), beta=3),
        write_run(tmp_path / "good", toxicity=(0.3, 0.2), rouge1=(0.5, 0.4), beta=2),
        write_run(tmp_path / "bold", toxicity=(0.0, 0.0), rouge1=(0.1, 0.1), beta=1),
    ]
    for max_loss, chosen in ((0.1, 1), (0.4, 2), (0.0, 0)):
        assert weigh(*folders, max_loss=max_loss).chosen == chosen
    assert weigh(*folders[1:], max_loss=0.0).chosen is None
    chart = weigh(*folders, max_loss=0.1).make_chart()
    assert [dot.x.value for dot in chart.dots] == pytest.approx([0, -5, -40])
    assert [dot.value.value for dot in chart.dots] == pytest.approx([45, 25, 0])
    assert [dot.label for dot in chart.dots] == ["safe", "good (chosen)", "bold"]
    assert chart.limit == -10


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
    assert r"| high \* | 2 | 50.0 → 25.0<br>" in page
    assert "lora: trained by lora" in page
    found = json.loads((out / "frontier.json").read_text())
    assert found["chosen"] == "high"
    assert list(found["arms"]) == ["high", "low"]
    assert found["arms"]["low"]["estimates"]["rouge1_change"]["value"] == pytest.approx(-0.4)
    assert [run["seed"] for run in found["arms"]["low"]["runs"]] == [1, 2]
    assert (out / "plots" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--max_rouge_loss", "1"]) == 0
    assert "none is chosen" in (out / "frontier.md").read_text()


def test_folders_that_cannot_be_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untested, plain = write_run(tmp_path / "untested", 2), write_run(tmp_path / "plain", 3)
    untested.predictions.unlink()
    write_lines(plain.predictions, [{"id": "0", "rouge1": 1.0, "rouge1_before": 1.0}])
    paths = [str(path) for path in (untested.path, plain.path, tmp_path / "none")]
    assert main([*paths, "--out", str(tmp_path / "out")]) == 2
    for message in (
        "untested: its test lacks toxicity, toxicity_before, rouge1, rouge1_before; repeat it",
        "plain: its test lacks toxicity, toxicity_before; repeat it",
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
