"""The study of PPO over seeds: what it runs, in which order, and how it continues."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ppo_study
from common.run_folder import RunFolder

Calls = list[list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Record what is called instead of calling it."""
    made: Calls = []

    def record(name: str) -> Any:
        return lambda arguments: made.append([name, *arguments])

    monkeypatch.chdir(tmp_path)
    for name in ("demo", "sweep", "frontier"):
        monkeypatch.setattr(getattr(ppo_study, name), "main", record(name))
    return made


def test_parts_run_seed_by_seed_with_a_report_after_each(calls: Calls) -> None:
    RunFolder("runs/demo/lora").export.mkdir(parents=True)
    assert ppo_study.main(["--parts", "policies", "betas", "--seeds", "7,8,9"]) == 0
    assert calls[0] == ["demo", "--only", "full_ft", "soft_prompt", "--root", "runs/demo"]
    configs = ["--config", "configs/ppo.yaml", "--config", "configs/overlays/mini.yaml"]
    out, adapter = "runs/ppo_study", ["--model.adapter", "runs/demo/lora/export"]
    expected: Calls = []
    for part, seeds, options in (
        ("policies", "7", []), ("policies", "7,8", []), ("policies", "7,8,9", []),
        ("betas", "7", adapter), ("betas", "7,8", adapter),
    ):  # fmt: skip
        file = f"configs/sweeps/ppo_{part}.yaml"
        sweep = ["sweep", file, "--out", f"{out}/{part}", "--seeds", seeds, *configs, *options]
        folders = [f"{out}/policies"] + [f"{out}/betas"] * (part == "betas")
        expected += [sweep, ["frontier", *folders, "--out", f"{out}/report"]]
    assert calls[1:] == expected


def test_a_failed_start_ends_it_and_a_failed_run_does_not(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_study.demo, "main", lambda arguments: 3)
    assert ppo_study.main([]) == 3
    assert calls == []
    for name in ppo_study.STARTS:
        RunFolder(f"runs/demo/{name}").export.mkdir(parents=True)
    monkeypatch.setattr(ppo_study.sweep, "main", lambda arguments: 1)
    assert ppo_study.main(["--seeds", "1,2", "--parts", "betas"]) == 1
    assert [call[0] for call in calls] == ["frontier"] * 2


def test_every_part_is_a_sweep_file() -> None:
    sweeps = Path(__file__).parent.parent / "configs" / "sweeps"
    files = {file.stem for file in sweeps.glob("ppo_*.yaml")}
    assert {f"ppo_{part}" for part in ppo_study.PARTS} == files
