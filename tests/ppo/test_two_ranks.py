"""PPO on two ranks: the update of one, and rollouts and the monitor by the command line."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from common.run_folder import RolloutFiles
from lightning_modules.backbones import Prompts
from lightning_modules.policies.kinds import FullPolicy, LoRAPolicy, PolicyKind
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from lightning_modules.ppo.rollout import roll_out
from tests.batches import loader, make_batch, make_trainer, settle
from tests.breaking import without_clocks
from tests.launching import last_words, run_ranks
from tests.ranks import FixedRollouts
from tests.rows import write_rows
from tests.test_accumulation import distance
from tests.test_strategies import SHARDED, STRATEGIES, cases

ROOT = Path(__file__).parent.parent.parent


POLICIES: dict[str, PolicyKind] = {
    "lora": LoRAPolicy(r=4, alpha=8),
    "all weights": FullPolicy(),
    "decoder": FullPolicy(train_encoder=False),  # it shares weights with its reference
}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_ranks_write_their_own_rollouts_and_stop_together(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    folder = RolloutFiles(tmp_path / "run")
    said = run(
        "train.py", "fit", *tiny_ppo, "--config", "configs/overlays/rollouts.yaml",
        "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2",
        "--model.ppo.minibatch_size", "2", "--model.optimizer.lr", "0.1", "--run_dir",
        str(tmp_path / "run"), "--monitor.kl_limit", "1e-3", "--monitor.stop_on", "[kl]",
    )  # fmt: skip
    batches = folder.batches()
    assert len(batches) < 10, "no rank may go on alone, nor wait for one"
    assert len(re.findall(r"kl, step \d+:", said)) == 1
    for number in batches:
        one, other = (read_rows(folder, number, rank) for rank in (0, 1))
        assert [row["prompt_tokens"] for row in one] != [row["prompt_tokens"] for row in other]


def read_rows(folder: RolloutFiles, batch: int, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.rows(batch, rank).open(encoding="utf-8")]


@pytest.mark.parametrize(("kind", "strategy"), cases(POLICIES))
def test_two_ranks_take_the_steps_of_one_on_the_same_rollouts(
    kind: str, strategy: str, t5: str, tmp_path: Path
) -> None:
    """Uneven shares: a mean over ranks of what are means over tokens would be another."""
    batch = make_batch(t5)
    ppo = PPOConfig(
        max_new_tokens=12, minibatch_size=6, epochs=1, max_grad_norm=0.2, normalize_scores=True,
        kl_coef=0.5, kl_target=0.1, kl_horizon=10,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "backbone": t5, "reward_model": None, "ppo": ppo, "policy": POLICIES[kind],
        "extra_rewards": {"letters": FunctionReward("tests.ranks.count_letters")},
        "optimizer": partial(torch.optim.AdamW, lr=0.01, eps=1e-3),
    }  # fmt: skip

    def steps(name: str, *shares: list[int], **where: Any) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        torch.save(rollout, folder / "rollout.pt")

        def fit() -> None:
            module = FixedRollouts(folder, shares, **settings)
            trainer = make_trainer(folder, use_distributed_sampler=False, **where)
            trainer.fit(module, loader(batch, batch))

        if where:
            codes = run_ranks(fit, folder)
            assert codes == [0, 0], last_words(folder)
        else:
            fit()
        return [torch.load(folder / f"{rank}.pt") for rank in range(len(shares))]

    maker = settle(FixedRollouts(tmp_path, [], **settings))
    prompts = Prompts(batch["input_ids"], batch["attention_mask"])
    rollout = roll_out(
        maker.backbone,
        maker.open_reference,
        prompts,
        maker.sampling,
        maker.value_head,
        reuse_sampler=True,
    )
    start = {name: p.detach().clone() for name, p in maker.named_parameters() if p.requires_grad}

    (alone,) = steps("alone", [0, 1, 2, 3, 4, 5])
    ranks = steps("ranks", [0, 3, 4, 5], [1, 2], devices=2, strategy=strategy)
    for each in ranks:
        for what in ("gradients", "weights"):
            assert distance(each[what], alone[what]) < 1e-5
        found, expected = (
            {name: float(value) for name, value in without_clocks(run["figures"]).items()}
            for run in (each, alone)
        )
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name in ("kl_coef", "moments"):
            assert each["loop"][name] == pytest.approx(alone["loop"][name], rel=1e-5)
    assert alone["loop"]["kl_coef"] != ppo.kl_coef
    norm = torch.nn.utils.get_total_norm(alone["gradients"].values())
    assert float(norm) == pytest.approx(0.2, rel=1e-3), "nothing is clipped"
    assert distance(start, alone["weights"]) > 1e-3


SAME = [
    {"fname": f"row_{i}", "dialogue": f"#Person1#: Six{' red' * 20} apples, for {i} people.",
     "summary": "They talk.", "topic": "x"}
    for i in range(8)
]  # fmt: skip
"""Cut to 80 tokens, all are the same prompt."""


@pytest.mark.parametrize("strategy", SHARDED)
def test_rollouts_differ_between_ranks_and_come_again_under_another_strategy(
    strategy: str, tiny_ppo: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """All prompts are one and the same, so that only the random numbers can tell ranks apart."""
    monkeypatch.setattr("callbacks.plots.draw_run", lambda folder: None)
    data = write_rows(tmp_path / "same", train=SAME, validation=SAME[:3])

    def roll(name: str, *overlays: Path) -> list[list[torch.Tensor]]:
        """Give the responses of each batch on each rank."""
        run = tmp_path / name
        arguments = [
            "fit", *tiny_ppo, "--config", "configs/overlays/rollouts.yaml", "--run_dir", str(run),
            "--data.source", str(data), "--data.batch_size", "2", "--data.max_source_length", "80",
            "--model.ppo.minibatch_size", "2", "--model.policy", "FullPolicy",
            "--model.optimizer.lr", "1e-3", "--trainer.max_epochs", "1",
            "--trainer.val_check_interval", "1.0",
            *(part for file in overlays for part in ("--config", str(file))),
            "--trainer.devices", "2",
        ]  # fmt: skip
        logs = tmp_path / f"logs_{name}"
        logs.mkdir()
        codes = run_ranks(lambda: train.main(arguments), logs)
        assert codes == [0, 0], last_words(logs)
        folder = RolloutFiles(run)
        assert folder.batches() == [0, 1]
        assert any((run / "export").glob("*.safetensors"))
        return [
            [[row["response_tokens"] for row in read_rows(folder, number, rank)] for rank in (0, 1)]
            for number in folder.batches()
        ]

    overlays = ROOT / "configs" / "overlays"
    ddp = roll("ddp", overlays / "ddp.yaml")
    assert not any(one == other for one, other in ddp)
    again = roll("again", overlays / STRATEGIES[strategy])
    assert again == ddp
