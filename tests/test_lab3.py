"""Lab 3's statistics, worked out by hand, and what its runs read and write."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lab3 import __main__ as lab3
from benchmarks.lab3 import report

ROOT = Path(__file__).parents[1]


def test_eleven_rows_need_an_effect_that_is_larger_than_all_toxicity() -> None:
    # (1.95996 + 0.84162) * 0.0314 * sqrt(2 / 11) / 0.0348
    assert report.detectable(0.0348, 0.0314, 11) == pytest.approx(1.0779, abs=1e-4)
    assert report.detectable(0.0348, 0.0314, 11, 0.5) == pytest.approx(1.0779 / 2**0.5, abs=1e-4)


def test_verdicts_are_counted_over_the_choices_of_rows() -> None:
    # Toxicity falls by a fifth. Two of three rows fall to 0, one rises to 2.4. Of two rows drawn
    # with replacement both fall in 4 of 9 cases; otherwise their mean rises.
    before, after = np.ones((2, 3)), np.array([[0.0, 0.0, 2.4]] * 2)
    found = report.judge(before, after, 2)
    assert report.improvement(before, after) == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(-1.4), 1.0)
    assert found.wrong == pytest.approx(5 / 9, abs=0.03)
    assert found.found == pytest.approx(4 / 9, abs=0.03)


def test_the_steps_of_our_runs_are_those_of_the_longest(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("The policy passed the gate: KL to the reference 0\n")
    for steps in (10, 200):
        rows = [",".join(report.LOGGED.values()), *(f"0.5,{steps},1" for _ in range(3)), ",,"]
        (tmp_path / f"step{steps}").mkdir()
        (tmp_path / f"step{steps}" / "metrics.csv").write_text("\n".join(rows))
    steps_read, gates = report.read_steps(tmp_path, "ours")
    assert steps_read == [{"kl": 0.5, "entropy": 200.0, "ratio": 1.0}] * 3
    assert gates == {"0": "passed the gate: KL to the reference 0"}


def test_every_arm_runs_with_every_seed_and_the_main_ones_with_the_labs_lora() -> None:
    runs = lab3.plan(seeds=2, steps=50, chosen=list(lab3.ARMS))
    assert len({run.name for run in runs}) == len(runs) == 1 + 4 + 2 * len(lab3.ARMS)
    assert {run.arm for run in runs if run.start == "r32_qv"} == set(report.CHECKED)
    assert {run.arm for run in runs} == set(report.LABELS)


def test_the_page_shows_the_function_that_runs() -> None:
    code = (ROOT / "benchmarks" / "lab3" / "trl_ppo.py").read_text("utf-8")
    function = re.search(r"@torch\.no_grad\(\)\ndef check\(.*?\n\n\n", code, re.DOTALL)
    assert function and function[0].strip() in (ROOT / "docs" / "lab3.md").read_text("utf-8")


@pytest.mark.slow
def test_trl_ignores_the_reference_that_it_is_given(tmp_path: Path) -> None:
    lab3.main(["--root", str(tmp_path), "--steps", "10", "--seeds", "1"])
    runs = json.loads((tmp_path / "results.json").read_text("utf-8"))["runs"]
    kl = {name: run["steps"][0]["kl"] for name, run in runs.items()}
    for start in ("r16_qkvo", "r32_qv"):
        assert kl[f"lab-{start}-seed1"] > 10
        for arm in ("forced", "careful", "ours_rloo"):
            assert abs(kl[f"{arm}-{start}-seed1"]) < 1e-4
    assert (tmp_path / "power.png").stat().st_size > 10_000
