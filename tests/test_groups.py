from pathlib import Path
from typing import Any

import pytest

from reporting.groups import differing, group_runs, mask_seed
from reporting.runs import read_runs
from tests.report_runs import draw_values, lay_run

VALUES = draw_values(0, 4)


def group(*paths: Path) -> list[tuple[str, list[str]]]:
    runs, problems = read_runs(paths)
    assert problems == []
    return [(one.label, [run.name for run in one.runs]) for one in group_runs(runs)]


def lay(path: Path, seed: int | None, method: str = "lora", **model: Any) -> Path:
    return lay_run(path, VALUES, method, seed, config={"model": {"init_args": model}})


def test_runs_that_differ_in_their_seed_alone_are_one_method(tmp_path: Path) -> None:
    paths = [lay(tmp_path / f"lora_s{seed}", seed, r=16) for seed in (1, 2, 3)]
    paths.append(lay(tmp_path / "lora_r8", 1, r=8))
    assert group(*paths) == [
        ("lora", ["lora_s1", "lora_s2", "lora_s3"]),
        ("lora_r8", ["lora_r8"]),
    ]


def test_folders_by_seed_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    paths = [
        lay(tmp_path / str(seed) / name, seed, name, adapter=f"runs/seeds/{seed}/lora/export")
        for seed in (1, 2)
        for name in ("lora", "ppo")
    ]
    assert [label for label, _ in group(*paths)] == ["lora", "ppo"]


def test_two_runs_of_one_seed_are_no_two_draws(tmp_path: Path) -> None:
    paths = [lay(tmp_path / name, 1, r=16) for name in ("a", "b")]
    assert group(*paths) == [("a", ["a"]), ("b", ["b"])]
    assert len(group(paths[0], paths[0])) == 2
    paths = [lay(tmp_path / name, None, r=16) for name in ("c", "d")]
    assert [label for label, _ in group(*paths)] == ["c", "d"]


def test_runs_without_settings_are_grouped_by_their_names(tmp_path: Path) -> None:
    paths = [lay(tmp_path / name, 1 + i) for i, name in enumerate(("x1", "x-2", "y"))]
    for path in paths:
        (path / "config.yaml").unlink()
    # "x1" has no number of its own.
    assert [label for label, _ in group(*paths)] == ["x1", "x-2", "y"]
    paths = [lay(tmp_path / f"z/seed{seed}", seed) for seed in (7, 8)]
    for path in paths:
        (path / "config.yaml").unlink()
    assert len(group(*paths)) == 1


@pytest.mark.parametrize(
    ("text", "seed", "masked"),
    [
        ("runs/3/lora", 3, "runs/{seed}/lora"),
        ("lora_s3", 3, "lora_{seed}"),
        ("lora-seed=3/export", 3, "lora-{seed}/export"),
        ("google/flan-t5-base", 5, "google/flan-t5-base"),
        ("v1.1", 1, "v1.1"),
        ("lora_13", 3, "lora_13"),
        ("lora_3", None, "lora_3"),
    ],
)
def test_a_seed_is_a_number_of_its_own(text: str, seed: int | None, masked: str) -> None:
    assert mask_seed(text, seed) == masked


def test_settings_that_differ(tmp_path: Path) -> None:
    one = lay(tmp_path / "one", 1, r=16, target_modules=["q"], adapter="runs/1/x")
    two = lay(tmp_path / "two", 2, r=8, target_modules=["q"], adapter="runs/2/x", dora=True)
    runs, _ = read_runs([one, two])
    assert differing(runs) == {
        "model.init_args.r": [16, 8],
        "model.init_args.dora": [None, True],
    }
