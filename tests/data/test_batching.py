from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batching import Collator, Example, LengthBatchSampler

LENGTHS = st.lists(st.integers(1, 40), min_size=4, max_size=300)


def example(index: int, source: list[int], target: list[int]) -> Example:
    return Example(
        index, f"row{index}", f"dialogue {index}", ["one", "two"],
        np.array(source, dtype=np.int32), np.array(target, dtype=np.int32),
    )  # fmt: skip


def epoch_of(**settings: Any) -> list[list[int]]:
    return list(LengthBatchSampler(**{"shuffle": True, "batch_size": 4, **settings}))


def test_collate_pads_source_and_target_to_eights() -> None:
    batch = Collator(0)([example(3, [7, 8, 1], [5, 1]), example(1, list(range(1, 10)), [6, 6, 1])])
    assert batch["input_ids"].tolist() == [
        [7, 8, 1, *[0] * 13],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, *[0] * 7],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 13, [1] * 9 + [0] * 7]
    assert batch["labels"].tolist() == [[5, 1, *[-100] * 6], [6, 6, 1, *[-100] * 5]]
    assert batch["index"].tolist() == [3, 1]
    assert batch["ids"] == ["row3", "row1"]
    assert batch["dialogues"] == ["dialogue 3", "dialogue 1"]
    assert batch["references"] == [["one", "two"], ["one", "two"]]
    assert {batch[k].dtype for k in ("input_ids", "attention_mask", "labels", "index")} == {
        torch.int64
    }


def test_a_pad_token_in_the_text_is_attended_to() -> None:
    batch = Collator(0)([example(0, [0, 5, 1], [1])])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_each_row_once_and_the_same_number_of_batches_on_every_rank(
    lengths: list[int], batch_size: int, world: int, shuffle: bool, epoch: int
) -> None:
    ranks = []
    for rank in range(world):
        sampler = LengthBatchSampler(lengths, batch_size, shuffle, 7, world, rank)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for dealt in zip(*ranks, strict=True):
        sizes = [len(batch) for batch in dealt]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(batch_size, 2)  # 2: see the docstring, one row per rank
        if batch_size > 1:
            assert max(sizes) <= batch_size


@given(LENGTHS, st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    lengths: list[int], batch_size: int, world: int, shuffle: bool
) -> None:
    alone = LengthBatchSampler(lengths, batch_size * world, shuffle, 3)
    dealt = [LengthBatchSampler(lengths, batch_size, shuffle, 3, world, r) for r in range(world)]
    for whole, parts in zip(alone, zip(*dealt, strict=True), strict=True):
        assert sorted(whole) == sorted(row for part in parts for row in part)


def test_order_depends_on_seed_and_epoch_only() -> None:
    lengths = [1 + (7 * i) % 31 for i in range(200)]
    torch.manual_seed(1)
    first = epoch_of(lengths=lengths, seed=5)
    torch.manual_seed(2)
    np.random.seed(2)  # global state must not matter
    assert epoch_of(lengths=lengths, seed=5) == first
    assert epoch_of(lengths=lengths, seed=6) != first
    sampler = LengthBatchSampler(lengths, 4, shuffle=True, seed=5)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert {frozenset(batch) for batch in second} != {frozenset(batch) for batch in first}
    sampler.set_epoch(0)
    assert list(sampler) == first
    # (seed, epoch) is a pair: seed 5 in epoch 1 is not seed 6 in epoch 0
    assert second != epoch_of(lengths=lengths, seed=6)


def test_shuffled_batches_hold_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 1600).tolist()
    batches = epoch_of(lengths=lengths, batch_size=8)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert sum(lengths) / padded > 0.97
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest)


def test_evaluation_goes_from_the_longest_to_the_shortest() -> None:
    assert list(LengthBatchSampler([3, 9, 1, 7, 9], 2, shuffle=False)) == [[1], [4, 3], [0, 2]]


def test_fewer_rows_than_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 row.* 4 ranks.*--trainer.devices 3"):
        LengthBatchSampler([1, 2, 3], 8, shuffle=True, world_size=4)
