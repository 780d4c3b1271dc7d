"""PPO on two ranks: the update of one, and rollouts, replay and watch by the command line."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.rollouts import RolloutFolder
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import LoRAPolicy
from lightning_modules.ppo.reward_terms import FunctionReward
from lightning_modules.ppo.rollout import Prompts, roll_out
from tests.batches import loader, make_batch, make_trainer, settle
from tests.ranks import FixedRollouts

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
    assert {folder.describe(number)["ranks"] for number in batches} == {2}
    rows = [[folder.read(number, rank, 0) for rank in (0, 1)] for number in batches]
    for pair in rows:
        assert [(each.rank, each.ranks) for each in pair] == [(0, 2), (1, 2)]
        sums = [{n: v for n, v in each.figures.items() if "policy" in n} for each in pair]
        assert sums[0] == sums[1]
        one, other = (each.experience.rollout.prompts.input_ids for each in pair)
        assert one.shape != other.shape or not torch.equal(one, other)
    shown = run("replay.py", str(tmp_path / "run"), "--batch", str(batches[0]))
    assert len(re.findall("ppo/policy/loss", shown)) == 1


def test_two_ranks_take_the_step_of_one_on_the_same_rollouts(t5: str, tmp_path: Path) -> None:
    """Uneven shares: a mean over ranks of what are means over tokens would be another."""
    batch = make_batch(t5)
    ppo = PPOConfig(
        max_new_tokens=12, minibatch_size=6, epochs=1, max_grad_norm=1e9, whiten_rewards=True,
        normalise_scores=True, kl_coef=0.5, kl_target=0.1, kl_horizon=10,
    )  # fmt: skip

    def step(name: str, *shares: list[int], **settings: Any) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        module = FixedRollouts(
            folder, shares, backbone=t5, reward_model=None, ppo=ppo,
            extra_rewards={"letters": FunctionReward("tests.ranks.count_letters")},
            policy=LoRAPolicy(r=4, alpha=8), optimizer=partial(torch.optim.SGD, lr=0.0),
        )  # fmt: skip
        torch.save(rollout, folder / "rollout.pt")
        make_trainer(folder, use_distributed_sampler=False, **settings).fit(module, loader(batch))
        return [torch.load(folder / f"{rank}.pt") for rank in range(len(shares))]

    maker = settle(
        FixedRollouts(tmp_path, [], backbone=t5, reward_model=None, ppo=ppo,
                      extra_rewards={"letters": FunctionReward("tests.ranks.count_letters")},
                      policy=LoRAPolicy(r=4, alpha=8))
    )  # fmt: skip
    prompts = Prompts(batch["input_ids"], batch["attention_mask"])
    rollout = roll_out(maker.model, prompts, maker.sampling, maker.value_head, reuse_sampler=True)

    (alone,) = step("alone", [0, 1, 2, 3, 4, 5])
    ranks = step("ranks", [0, 3, 4, 5], [1, 2], devices=2, strategy="ddp_spawn")
    assert alone["gradients"].keys() == ranks[0]["gradients"].keys()
    whole, *both = (
        torch.cat([each["gradients"][name].flatten() for name in alone["gradients"]])
        for each in (alone, *ranks)
    )
    for gradient in both:
        assert (gradient - whole).norm() < 1e-5 * whole.norm()
    assert whole.norm() > 0.01
    for name in ("ppo/policy/loss", "ppo/val/loss", "ppo/policy/approxkl"):
        for each in ranks:
            torch.testing.assert_close(each["figures"][name], alone["figures"][name])
    assert alone["loop"]["kl_coef"] != ppo.kl_coef
    for each in ranks:
        for name in ("kl_coef", "moments"):
            assert each["loop"][name] == pytest.approx(alone["loop"][name], rel=1e-5)
