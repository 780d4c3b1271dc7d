"""report.html: every number is that of the run folders."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignsum.commands.compare import main
from common.run_folder import RolloutFiles
from metrics.intervals import (
    Estimate,
    bootstrap_crossed,
    bootstrap_mean,
    difference_over_runs,
    paired_change,
)
from reporting.comparison import Comparison
from reporting.page.examples import mark_overlap, stems_of
from reporting.page.rollouts import ROLLOUTS, list_rollouts
from reporting.runs import read_runs
from tests.reporting.parsed_page import Page
from tests.reporting.run_folders import (
    METRICS,
    draw_values,
    write_ppo,
    write_rollouts,
    write_run,
)

N = 40
MEANS = {"zero_shot": 0.2, "full_ft": 0.6, "lora_s1": 0.5, "lora_s2": 0.52, "lora_s3": 0.55}
GROUPS = {
    "zero_shot": ["zero_shot"], "full_ft": ["full_ft"], "lora": ["lora_s1", "lora_s2", "lora_s3"],
    "ppo": ["ppo"],
}  # fmt: skip
RAW = ("reward", "kl")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for place, (name, mean) in enumerate(MEANS.items()):
        method, _, seed = name.partition("_s")
        settings: dict[str, Any] = {"seed": int(seed)} if seed.isdigit() else {}
        trainable = 0 if name == "zero_shot" else 57_344
        write_run(
            root / name, draw_values(place, N, mean), method, trainable=trainable,
            config={"model": {"of": method}, "data": {"init_args": {"source": "mini"}}}, **settings,
        )  # fmt: skip
    write_ppo(root / "ppo", draw_values(9, N, 0.55))
    return root


@pytest.fixture(scope="module")
def out(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    paths = [str(runs / name) for name in (*MEANS, "ppo")]
    args = [*paths, "--out", str(folder)]
    assert main(args) == 0
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def columns(runs: Path, label: str, metric: str) -> np.ndarray:
    """The values of predictions.jsonl: a row for each run of a group."""
    found = []
    for name in GROUPS.get(label, [label]):
        lines = (runs / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([json.loads(line)[metric] for line in lines])
    return np.array(found)


def late_kl(runs: Path) -> Estimate:
    """The mean of the last quarter of the 80 logged values."""
    with (runs / "ppo" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        values = [float(row["objective/kl"]) for row in csv.DictReader(file) if row["objective/kl"]]
    assert len(values) == 80
    return bootstrap_mean(values[-20:])


def expect(runs: Path, cell: dict[str, str]) -> Estimate:
    """Compute anew what a cell has to show."""
    row, metric, of = cell["data-row"], cell["data-metric"], cell["data-of"]
    if metric == "kl":
        return late_kl(runs)
    after = columns(runs, row, metric)
    if of == "value":
        return bootstrap_crossed(after.tolist())
    before = columns(runs, of, metric)
    if len(before) == len(after) == 1:
        return paired_change(before[0].tolist(), after[0].tolist())
    return difference_over_runs(before, after)


def judge(cell: dict[str, str], ends: tuple[float, float]) -> list[str]:
    """The class that colors a difference: whether it is clear of 0, and for better or worse."""
    better = -1 if cell["data-metric"] == "toxicity" else 1
    if cell["data-of"] == "value" or ends[0] <= 0 <= ends[1]:
        return []
    return ["better" if better * ends[0] > 0 else "worse", "up" if ends[0] > 0 else "down"]


def test_every_number_of_the_tables_is_that_of_the_run_folders(runs: Path, page: Page) -> None:
    seen = set()
    for cell, texts in page.cells:
        if "data-value" not in cell:
            continue
        wanted, metric = expect(runs, cell), cell["data-metric"]
        assert float(cell["data-value"]) == pytest.approx(wanted.value, abs=1e-12)
        assert int(cell["data-n"]) == wanted.n
        ends = (float(cell["data-low"]), float(cell["data-high"]))
        assert ends == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        scale, decimals = (1, 2) if metric in RAW else (100, 1)
        sign = "" if cell["data-of"] == "value" else "+"
        assert wanted.low is not None
        shown = [f"{scale * part:{sign}z.{decimals}f}" for part in (wanted.value, *ends)]
        if "→" in texts[0]:  # PPO's toxicity, before and after
            before = columns(runs, "ppo", "toxicity_before")[0]
            change = paired_change(before.tolist(), columns(runs, "ppo", "toxicity")[0].tolist())
            assert change.low is not None
            assert change.high is not None
            assert texts == [
                f"{100 * before.mean():.1f} → {shown[0]}",
                f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})",
            ]
        else:
            low = f"+{shown[1]}" if not sign and ends[0] < 0 else shown[1]
            assert texts[:2] == [shown[0], f"{low} to {shown[2]}"]
        assert cell["class"].split()[1:] == judge(cell, ends)
        seen.add((cell["data-row"], metric, cell["data-of"]))
    values = {(row, metric, "value") for row in (*GROUPS, *GROUPS["lora"]) for metric in METRICS}
    gaps = {(a, m, b) for a in GROUPS for b in GROUPS if a != b for m in METRICS}
    assert seen == values | gaps | {("ppo", "kl", "value")}


def test_costs_are_those_of_the_summaries(page: Page) -> None:
    costs = {
        (cell["data-row"], cell["data-metric"]): texts
        for cell, texts in page.cells
        if cell["data-of"] == "value"
    }
    assert costs["lora", "seconds"] == ["1 min 42 s"]  # of 101, 102 and 103 s
    assert costs["lora_s2", "seconds"] == ["1 min 42 s"]
    assert costs["full_ft", "trainable"] == ["57,344", "3.43 %"]
    assert costs["full_ft", "peak_memory_bytes"] == ["1.00 GiB"]
    assert costs["ppo", "n"] == ["40"]


def test_the_first_screen_answers_and_says_what_it_is_about(runs: Path, page: Page) -> None:
    ft, ppo = columns(runs, "full_ft", "rouge1"), columns(runs, "ppo", "rouge1")
    assert ft.mean() > ppo.mean() > columns(runs, "lora", "rouge1").mean()
    own, gap = bootstrap_mean(ft[0].tolist()), paired_change(ppo[0].tolist(), ft[0].tolist())
    evidence = page.paragraphs["evidence"]
    numbers = re.findall(r"-?\d+\.\d", evidence)
    parts = (own.value, own.low, own.high, gap.value, gap.low, gap.high)
    assert numbers == [f"{100 * part:z.1f}" for part in parts if part is not None]
    assert page.paragraphs["best"].startswith("No clear winner: full_ft and ppo are")
    facts = page.paragraphs["facts"]
    for fact in (
        "data mini",
        "model tiny",
        "test dialogues 40",
        "seeds per method 1 to 3",
        "commit d2d5d73577-dirty",
    ):
        assert fact in " ".join(facts.split())


def test_charts_show_the_same_numbers(runs: Path, page: Page) -> None:
    for label in GROUPS:
        for metric in ("rouge1", "toxicity"):
            value = expect(runs, {"data-row": label, "data-metric": metric, "data-of": "value"})
            assert value.low is not None
            assert value.high is not None
            parts = [100 * part for part in (value.value, value.low, value.high)]
            title = f"{label}: {parts[0]:.2f} ({parts[1]:.2f} to {parts[2]:.2f})"
            assert title in page.titles
    # Ends of curves.
    assert "full_ft: 1.5 at 20" in page.titles
    assert "ppo: 2 at 790" in page.titles


def test_the_examples_are_those_of_the_files(runs: Path, page: Page) -> None:
    found = json.loads(page.data)["examples"]
    assert [run["name"] for run in found["runs"]] == [*MEANS, "ppo", "ppo (before)"]
    for run in found["runs"]:
        name, _, before = run["name"].partition(" ")
        end = "_before" if before else ""
        lines = (runs / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert found["ids"] == [row["id"] for row in rows]
        assert found["references"] == [row["references"] for row in rows]
        assert run["texts"] == [row[f"prediction{end}"] for row in rows]
        assert set(run["scores"]) == set(METRICS)
        for metric, values in run["scores"].items():
            assert values == [round(row[metric + end], 5) for row in rows]
        assert run["names"] == [[] if end else ["Zorro"] for _ in rows]


def test_the_token_view_has_the_numbers_of_the_rollouts(runs: Path, page: Page) -> None:
    (run,) = json.loads(page.data)["rollouts"]
    assert (run["name"], run["clip"], run["total"]) == ("ppo", 0.2, 3)
    assert [batch["batch"] for batch in run["batches"]] == [0, 5, 9]
    path = RolloutFiles(runs / "ppo").rows(5)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, rollout in zip(rows, run["batches"][1]["rollouts"], strict=True):
        assert rollout["tokens"] == [" Ann", " asks", ".", "</s>"]
        assert rollout["score"] == row["score"]
        assert set(rollout["columns"]) == {
            "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards",
            "advantages", "returns",
        }  # fmt: skip
        for name, column in rollout["columns"].items():
            # As many digits as the page displays.
            assert column == [round(value, 4) for value in row[name]]


def test_the_first_rollouts_of_a_batch_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = write_ppo(tmp_path / "ppo", draw_values(0, 5))
    write_rollouts(path, [3], rows=ROLLOUTS + 4)
    runs, _ = read_runs([path])
    (run,), problems = list_rollouts(Comparison(runs))
    assert problems == []
    (batch,) = [one for one in run["batches"] if one["batch"] == 3]
    assert batch["rows"] == ROLLOUTS + 4
    assert [one["id"] for one in batch["rollouts"]] == [f"train_3_{i}" for i in range(ROLLOUTS)]


def test_words_overlap_by_their_stems() -> None:
    # "asked" and "asks" have one stem; ROUGE knows no stem of so short a word as "has".
    known = stems_of(["Person1 asks", "Ann"])
    assert mark_overlap("Ann asked for it, #Person1# has.", known) == "110010"


def test_versions_and_commands_are_those_of_the_runs(out: Path) -> None:
    source = re.sub("</?span>", "", (out / "report.html").read_text(encoding="utf-8"))
    for name in (*MEANS, "ppo"):
        assert re.search(rf"python train\.py fit --run_dir \S+/{name} </code>", source)
    assert "<dt>this page</dt><dd><code>python -m alignsum compare " in source
    assert "torch 2.13.0" in source


def test_nothing_points_outside(out: Path) -> None:
    source = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", source)
    assert "@import" not in source
    assert "url(" not in source.replace("url(#", "")  # parts of the same drawing
    assert "http://" not in source
    assert "https://" not in source
    assert "default-src 'none'" in source
