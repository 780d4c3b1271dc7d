"""The study of PPO over seeds: what it runs, in which order, and how it goes on."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ppo_study
from common.run_folder import RunFolder

Calls = list[list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Notes what is called in place of calling it; every sweep makes its folder."""
    made: Calls = []

    def note(name: str) -> Any:
        def call(arguments: list[str]) -> int:
            made.append([name, *arguments])
            if name == "sweep":
                Path(arguments[arguments.index("--out") + 1]).mkdir(parents=True, exist_ok=True)
            return 0

        return call

    monkeypatch.chdir(tmp_path)
    for name in ("demo", "sweep", "report"):
        monkeypatch.setattr(getattr(ppo_study, name), "main", note(name))
    return made


def test_parts_seed_by_seed_with_a_report_after_each(calls: Calls) -> None:
    RunFolder("runs/demo/lora").export.mkdir(parents=True)
    assert ppo_study.main(["--parts", "policies,betas", "--seeds", "7,8,9", "--few", "1"]) == 0
    assert calls[0] == ["demo", "--only", "full_ft", "soft_prompt", "--root", "runs/demo"]
    configs = ["--config", "configs/ppo.yaml", "--config", "configs/overlays/mini.yaml"]
    lora = ["--model.adapter", "runs/demo/lora/export"]
    out = "runs/ppo_study"
    expected: Calls = []
    for part, seeds, options in (
        ("policies", "7", []), ("policies", "7,8", []), ("policies", "7,8,9", []),
        ("betas", "7", lora),
    ):  # fmt: skip
        file = f"configs/sweeps/ppo_{part}.yaml"
        sweep = ["sweep", file, "--out", f"{out}/{part}", "--seeds", seeds, *configs, *options]
        there = [f"{out}/policies"] + [f"{out}/betas"] * (part == "betas")
        expected += [sweep, ["report", "frontier", *there, "--out", f"{out}/report"]]
    assert calls[1:] == expected


def test_starts_that_are_there_are_not_made_again(calls: Calls) -> None:
    for name in ppo_study.STARTS:
        RunFolder(f"{ppo_study.START_ROOT}/{name}").export.mkdir(parents=True)
    assert ppo_study.main(["--seeds", "1"]) == 0
    assert [call[0] for call in calls] == ["sweep", "report"] * 3


def test_a_start_that_fails_ends_it_and_a_run_that_fails_does_not(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_study.demo, "main", lambda arguments: 3)
    assert ppo_study.main([]) == 3
    assert calls == []
    monkeypatch.setattr(ppo_study.demo, "main", lambda arguments: 0)
    monkeypatch.setattr(ppo_study.sweep, "main", lambda arguments: 1)
    assert ppo_study.main(["--seeds", "1,2", "--parts", "betas"]) == 1
    assert [call[0] for call in calls] == ["report"] * 2


def test_unknown_parts_are_named(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ppo_study.main(["--parts", "betas,gammas"])
    assert "no such part: gammas; there are estimators, policies, betas" in capsys.readouterr().err
    assert calls == []


def test_every_part_is_a_sweep_file() -> None:
    sweeps = Path(__file__).parent.parent / "configs" / "sweeps"
    assert {f"ppo_{part}" for part in ppo_study.PARTS} == {
        file.stem for file in sweeps.glob("ppo_*.yaml")
    }
