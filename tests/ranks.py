"""What a rank does in a test, in a file of its own: each rank imports all that is here."""

import os
from pathlib import Path

import torch

from callbacks.text_metric import gather_rows
from metrics.rouge import Rouge

MAT = "the cat sat on the mat"


def score_on_a_rank(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    # Uneven: rank 0 has one row, rank 1 two, and row 2 is on both as a sampler would pad.
    mine = [(2, "the cat sat")] if rank == 0 else [(1, "dog"), (0, MAT), (2, "the cat sat")]
    rouge = Rouge()
    rouge.update([text for _, text in mine], [[MAT]] * len(mine))
    rows = gather_rows([{"index": index, "prediction": text} for index, text in mine])
    alone = Rouge()  # only rank 1 has examples
    if rank == 1:
        alone.update(["the cat sat", MAT], [[MAT, "dogs"], [MAT]])
    seen = {
        "rows": rows,
        "rouge1": rouge.compute()["rouge1"],
        "n": rouge.estimates()["rouge1"].n,
        "own": len(rouge.per_example()["rouge1"]),
        "alone": alone.compute()["rouge1"],
        "alone_best": alone.compute()["rouge1_best"],
    }
    torch.save(seen, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
