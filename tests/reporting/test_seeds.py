"""Grouping runs by seed, and the settings that differ between runs."""

from pathlib import Path
from typing import Any

import pytest

from reporting.runs import read_runs
from reporting.seeds import find_differences, flatten, group_runs, mask_seed
from tests.reporting.run_folders import draw_values, write_run

VALUES = draw_values(0, 4)


def group(*paths: Path) -> list[tuple[str, list[str]]]:
    runs, problems = read_runs(paths)
    assert problems == []
    return [(one.label, [run.name for run in one.runs]) for one in group_runs(runs)]


def write(path: Path, seed: int | None, method: str = "lora", **model: Any) -> Path:
    return write_run(path, VALUES, method, seed, config={"model": {"init_args": model}})


def test_runs_that_differ_only_in_their_seed_are_one_group(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"lora_s{seed}", seed, r=16) for seed in (1, 2, 3)]
    paths.append(write(tmp_path / "lora_r8", 1, r=8))
    assert group(*paths) == [
        ("lora", ["lora_s1", "lora_s2", "lora_s3"]),
        ("lora_r8", ["lora_r8"]),
    ]


def test_folders_by_seed_are_named_by_their_content(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / str(seed) / name, seed, name, adapter=f"runs/seeds/{seed}/lora/export")
        for seed in (1, 2)
        for name in ("lora", "ppo")
    ]
    assert [label for label, _ in group(*paths)] == ["lora", "ppo"]


@pytest.mark.parametrize("seed", [1, None])
def test_two_runs_with_the_same_seed_are_not_two_samples(tmp_path: Path, seed: int | None) -> None:
    paths = [write(tmp_path / name, seed, r=16) for name in ("a", "b")]
    assert group(*paths) == [("a", ["a"]), ("b", ["b"])]
    assert len(group(paths[0], paths[0])) == 2


def test_runs_without_settings_are_grouped_by_name(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, 1 + i) for i, name in enumerate(("x1", "x-2", "y"))]
    paths += [write(tmp_path / f"z/seed{seed}", seed) for seed in (7, 8)]
    for path in paths:
        (path / "config.yaml").unlink()
    # The 1 of "x1" is not a separate number.
    assert [label for label, _ in group(*paths)] == ["x1", "x-2", "y", "lora"]


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
def test_a_seed_is_a_separate_number(text: str, seed: int | None, masked: str) -> None:
    assert mask_seed(text, seed) == masked


def test_settings_differ_only_among_runs_that_have_them(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 1, r=16, target_modules=["q"], adapter="runs/1/x")
    two = write(tmp_path / "two", 2, r=8, target_modules=["q"], adapter="runs/2/x", dora=True)
    three = write(tmp_path / "three", 3, r=8, adapter=None)
    four = write(tmp_path / "four", 4, r=8, adapter=None)
    runs, _ = read_runs([one, two, three, four])
    found = {
        name: {value: [group.label for group in groups] for value, groups in values.items()}
        for name, values in find_differences(group_runs(runs)).items()
    }
    assert found == {
        "model.r": {"16": ["one"], "8": ["two", "lora"]},
        "model.adapter": {"runs/{seed}/x": ["one", "two"], "null": ["lora"]},
    }


def test_settings_have_their_names_on_the_command_line() -> None:
    callbacks = [{"class_path": "A", "init_args": {"x": 1}}]
    config = {"trainer": {"callbacks": callbacks}, "model": {"init_args": {"targets": ["q"]}}}
    assert flatten(config) == {
        "trainer.callbacks.0.class_path": "A", "trainer.callbacks.0.x": 1, "model.targets": ["q"],
    }  # fmt: skip
