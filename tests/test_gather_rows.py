"""Rows gathered from two ranks, for the metrics of generated texts."""

import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.ranks import MAT, gather_on_a_rank


def test_two_ranks_see_the_rows_and_the_rouge_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(gather_on_a_rank, (port, tmp_path), nprocs=2)
    for rank in (0, 1):
        gathered = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [(row["index"], row["prediction"]) for row in gathered["rows"]] == [
            (0, MAT), (1, "dog"), (2, "the cat sat"),
        ]  # fmt: skip
        assert gathered["rouge"] == {"rouge1": [1, 0.5], "rouge1_best": [1, 1], "mean": [0.75]}
