"""Rollouts, replay and watch on two ranks, by the command line."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from callbacks.rollouts import RolloutFolder

ROOT = Path(__file__).parent.parent.parent


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_ranks_write_their_own_stop_together_and_are_replayed(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    folder = RolloutFolder(tmp_path / "run")
    said = run(
        "train.py", "fit", *tiny_ppo, "--config", "configs/overlays/rollouts.yaml",
        "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2",
        "--model.ppo.minibatch_size", "2", "--model.optimizer.lr", "0.1", "--run_dir",
        str(tmp_path / "run"), "--watch.kl_limit", "1e-3", "--watch.stop_on", "[kl]",
    )  # fmt: skip
    batches = folder.batches()
    assert len(batches) < 10, "no rank may go on alone, nor wait for one"
    assert len(re.findall(r"kl, batch \d+:", said)) == 1
    assert {folder.ranks(number) for number in batches} == {2}
    rows = [[folder.read(number, rank, 0) for rank in (0, 1)] for number in batches]
    for pair in rows:
        assert [(each.rank, each.ranks) for each in pair] == [(0, 2), (1, 2)]
        sums = [{n: v for n, v in each.figures.items() if "policy" in n} for each in pair]
        assert sums[0] == sums[1]
        one, other = (each.experience.rollout.prompts.input_ids for each in pair)
        assert one.shape != other.shape or not torch.equal(one, other)
    shown = run("replay.py", str(tmp_path / "run"), "--batch", str(batches[0]))
    assert len(re.findall("ppo/policy/loss", shown)) == 1
