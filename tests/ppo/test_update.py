"""How a batch of rollouts is cut."""

import pytest
import torch

from lightning_modules.ppo.update import Cut, minibatches, plan_cut


@pytest.mark.parametrize(
    ("most", "least", "mini", "micro", "expected"),
    [
        (16, 16, 4, None, Cut(4, 1)),
        (16, 16, 16, 4, Cut(1, 4)),
        (17, 16, 4, 2, Cut(5, 2)),  # parts of 3 or 4 rows
        (2, 1, 1, None, Cut(1, 1)),  # a rank with one row cannot take two steps
        (5, 3, 5, 1, Cut(1, 3)),  # nor cut its three rows in five
    ],
)
def test_cuts_by_hand(most: int, least: int, mini: int, micro: int | None, expected: Cut) -> None:
    assert plan_cut(most, least, mini, micro) == expected


def test_every_row_is_learnt_from_once_an_epoch_and_groups_stay_together() -> None:
    owner = torch.arange(6).repeat_interleave(3)
    cut = list(minibatches(owner, Cut(3, 2), 4, torch.Generator().manual_seed(0)))
    assert len(cut) == 4 * 3
    orders = []
    for epoch in (cut[:3], cut[3:6], cut[6:9], cut[9:]):
        assert [len(part) for part in epoch] == [2, 2, 2]
        rows = torch.cat([rows for part in epoch for rows in part])
        assert sorted(rows.tolist()) == list(range(18))
        assert all(len(owner[torch.cat(part)].unique()) == 2 for part in epoch)
        orders.append(tuple(rows.tolist()))
    assert len(set(orders)) == 4
    again = list(minibatches(owner, Cut(3, 2), 4, torch.Generator().manual_seed(0)))
    assert [p.tolist() for e in again for p in e] == [p.tolist() for e in cut for p in e]
