"""The benchmark's own reckoning; the benchmark itself is run by hand."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.sft_throughput import parse, summarise
from benchmarks.throughput_workers import WARMUP, Step, Task, choose


def task(**settings: Any) -> Task:
    defaults: dict[str, Any] = {
        "folder": Path(), "method": "lora", "precision": "32-true", "fixed": False,
        "rounds": 3, "of": 3,
    }  # fmt: skip
    return Task(**{**defaults, **settings})


def test_all_rounds_together_are_the_epoch_and_each_goes_from_long_to_short() -> None:
    lengths = [5, 90, 20, 7, 60, 33, 71, 12, 48, 3]
    epoch = [[7, 2], [1, 6], [0, 9], [4, 8], [3, 5]]
    chosen = choose(epoch, lengths, task())
    # Longest rows: 90, 60, 33, 20, 5. To warm up: the longest batch and the middle one.
    assert chosen[:WARMUP] == [[1, 6], [3, 5]]
    assert chosen[WARMUP:] == [[1, 6], [7, 2], [4, 8], [0, 9], [3, 5]]
    assert choose(epoch, lengths, task(rounds=1))[WARMUP:] == [[4, 8], [0, 9]]  # the middle
    assert choose(epoch, lengths, task(rounds=2, of=5))[WARMUP:] == [[4, 8], [7, 2]]


def step(seconds: float, rows: int = 8, real: int = 800, padded: int = 1000) -> Step:
    return Step(seconds, rows, real, padded, peak=seconds)


def test_the_ratio_is_the_median_over_rounds_of_real_tokens_per_second() -> None:
    rounds = [
        ([step(1), step(3, real=400)], [step(2), step(3)]),  # 300 against 320
        ([step(1)], [step(2)]),  # 2
        ([step(1)], [step(3)]),  # 3
    ]
    summary = summarise(rounds, fixed=False)
    assert summary["ratios"] == pytest.approx([300 / 320, 2, 3])
    assert summary["ratio"] == pytest.approx(2)
    assert summary["steps"] == [4, 4]
    assert summary["ours"] == {
        "rows_per_s": pytest.approx(32 / 6), "tokens_per_s": pytest.approx(2800 / 6),
        "efficiency": pytest.approx(2800 / 4000), "peak_gib": 3,
    }  # fmt: skip


def test_against_fixed_padding_rows_count() -> None:
    rounds = [([step(1), step(1)], [step(4, real=100)])]
    assert summarise(rounds, fixed=True)["ratio"] == pytest.approx(4)


def test_rounds_that_an_epoch_does_not_have_are_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--rounds", "9", "--of", "8"])
    assert parse([]).rounds == 3


def test_a_batch_that_does_not_divide_the_epoch_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--batch", "5"])
    assert parse(["--batch", "4", "--of", "124"]).batch == 4
