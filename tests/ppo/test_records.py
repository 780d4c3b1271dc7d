"""Rollouts on disk: readable, complete, exact, and those of the uninterrupted run."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import decoders

import train
from callbacks.rollouts import RolloutWriter
from common.run_folder import RolloutFiles, write_lines
from lightning_modules import PPOPolicy
from lightning_modules.policies.kinds import LoRAPolicy
from lightning_modules.ppo.advantages import GRPO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.records import PER_TOKEN, to_records
from lightning_modules.ppo.reward_terms import FunctionReward
from tests.batches import loader, make_batch, make_trainer
from tests.conftest import adamw
from tests.ppo.test_policy import DECODING
from tests.tiny_run import TinyModule
from tests.tiny_run import loader as tiny_loader

PPO = PPOConfig(max_new_tokens=40, minibatch_size=4, epochs=2, normalise_scores=True)
SPECIAL = ("<pad>", "</s>", "<unk>")
DECODER = r".*decoder.*\.(q|v)"
CASES: dict[str, dict[str, Any]] = {
    "gae": {"ppo": replace(PPO, kl_target=0.5, kl_horizon=50.0)},
    "grpo": {
        "advantage": GRPO(),
        "policy": LoRAPolicy(r=4, alpha=8, target_modules=DECODER),
        "ppo": replace(PPO, samples=3, kl_estimator="k2", kl_in_loss=True, kl_coef=0.3),
    },
    "bf16": {"ppo": replace(PPO, microbatch_size=2, whiten_rewards=True)},
}
PRECISION = {"bf16": "bf16-mixed"}


def make_policy(t5: str, roberta: str, **settings: Any) -> PPOPolicy:
    defaults: dict[str, Any] = {
        "policy": LoRAPolicy(r=4, alpha=8), "ppo": PPO, "decoding": DECODING,
        "optimizer": adamw(0.02), "schedule": "linear",
        "extra_rewards": {"long": FunctionReward("tests.ppo.test_records.count_letters")},
    }  # fmt: skip
    return PPOPolicy(backbone=t5, reward_model=roberta, **(defaults | settings))


def count_letters(texts: list[str], *_: Any) -> list[float]:
    return [len(text) / 7 for text in texts]


def spell(tokens: Sequence[int]) -> list[str]:
    return [f"piece {token}" for token in tokens]


class Keep(L.Callback):
    """Keep what the steps returned."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["step"])


def fit(
    t5: str,
    roberta: str,
    folder: Path,
    batches: int = 3,
    every: int = 1,
    precision: str | None = None,
    **settings: Any,
) -> tuple[Keep, PPOPolicy]:
    """Train on batches of 6, 5 and 2 prompts."""
    torch.manual_seed(3)
    keep, writer = Keep(), RolloutWriter(every=every)
    module = make_policy(t5, roberta, **settings)
    rows = [make_batch(t5, rows) for rows in (6, 5, 2)][:batches]
    trainer = make_trainer(folder, callbacks=[keep, writer], precision=precision or "32-true")
    trainer.fit(module, loader(*rows))
    return keep, module


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_written_exactly(case: str, t5: str, roberta: str, tmp_path: Path) -> None:
    keep, _ = fit(t5, roberta, tmp_path, precision=PRECISION.get(case), **CASES[case])
    for number, step in enumerate(keep.steps):
        rows = read_rows(RolloutFiles(tmp_path).rows(number))
        rollout = step.rollout
        wrote = {
            "logprobs": rollout.logprobs, "ref_logprobs": rollout.ref_logprobs,
            "entropy": rollout.entropy, "rewards": step.rewards,
            "advantages": step.advantages, "response_tokens": rollout.responses,
        }  # fmt: skip
        for name, tensor in wrote.items():
            read = torch.tensor([value for row in rows for value in row[name]])
            assert torch.equal(read.to(tensor.dtype), tensor[rollout.mask]), name
        assert torch.equal(torch.tensor([row["score"] for row in rows]), step.scores)
        assert [row["batch"] for row in rows] == [number] * len(rows)
        assert list(rows[0]["terms"]) == ["reward_model", "long"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_a_line_is_a_rollout_that_people_can_read(t5: str, roberta: str, tmp_path: Path) -> None:
    keep, _ = fit(t5, roberta, tmp_path, batches=1, **CASES["grpo"])
    (step,) = keep.steps
    rows = read_rows(RolloutFiles(tmp_path).rows(0))
    batch = make_batch(t5)
    assert [row["id"] for row in rows] == [f"row_{i}" for i in range(6) for _ in range(3)]
    assert [row["prompt"] for row in rows[::3]] == batch["dialogues"]
    assert [row["response"] for row in rows] == step.texts
    for row, mask, finished in zip(rows, step.rollout.mask, step.rollout.finished, strict=True):
        length = int(mask.sum())
        assert len(row["response_tokens"]) == length
        assert row["finished"] == bool(finished) == (row["response_tokens"][-1] == 1)
        assert 1 not in row["response_tokens"][:-1]
        assert row["prompt_tokens"][-1] == 1
        pieces = [piece for piece in row["response_pieces"] if piece not in SPECIAL]
        assert decoders.ByteLevel().decode(pieces).strip() == row["response"]
        assert row["values"] is row["returns"] is None
        for name in set(PER_TOKEN) - {"values", "returns"}:
            assert len(row[name]) == length
        assert row["score"] == pytest.approx(sum(row["terms"].values()), rel=1e-6)
        assert row["beta"] == 0.3
        assert row["batch"] == 0
    assert {len(row["response_tokens"]) for row in rows} != {40}


def test_the_last_epochs_ratios_are_in_the_records(t5: str, roberta: str, tmp_path: Path) -> None:
    """One epoch of one minibatch sees the policy that sampled, the second what the first made."""
    means = []
    for epochs in (1, 2):
        ppo = replace(PPO, epochs=epochs, minibatch_size=6)
        (step,) = fit(t5, roberta, tmp_path / str(epochs), batches=1, ppo=ppo)[0].steps
        rows = read_rows(RolloutFiles(tmp_path / str(epochs)).rows(0))
        old, new = (
            torch.tensor([number for row in rows for number in row[name]])
            for name in ("logprobs", "new_logprobs")
        )
        assert len(new) == int(step.rollout.mask.sum())
        assert torch.allclose(new, old, atol=1e-5) == (epochs == 1)
        means.append(float((new - old).exp().mean()))
    # What is logged is the mean over both epochs.
    logged = float(step.metrics["ppo/policy/ratio"])
    assert sum(means) / 2 == pytest.approx(logged, abs=1e-5)


def test_line_breaks_within_a_text_stay_within_a_line(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    keep, _ = fit(t5, roberta, tmp_path, batches=1)
    texts = ["a\u2028b\x85c\nd\re"] * 6
    step = replace(keep.steps[0], texts=texts)
    path = tmp_path / "rows.jsonl"
    write_lines(path, to_records(step, ["x"] * 6, ["y"] * 6, spell))
    assert [row["response"] for row in read_rows(path)] == texts


def test_other_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TinyModule samples no rollouts"):
        make_trainer(tmp_path, callbacks=[RolloutWriter()]).fit(TinyModule(), tiny_loader())
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        RolloutWriter(every=0)


# By the command line ----------------------------------------------------------------------------

OVERLAY = ["--config", "configs/overlays/rollouts.yaml"]


def test_a_resumed_run_leaves_the_rollouts_of_the_uninterrupted_one(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    args = [*tiny_ppo, *OVERLAY, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    whole, broken = ([*args, "--run_dir", str(tmp_path / name)] for name in "ab")
    train.main(["fit", *whole])
    with pytest.raises(RuntimeError, match="on purpose"):
        train.main(["fit", *broken, "--trainer.callbacks+", "tests.ppo.test_resume.BreakOff"])
    left, wanted = RolloutFiles(tmp_path / "b"), RolloutFiles(tmp_path / "a")
    assert left.batches() == [0, 1, 2]
    left.rows(7).write_text("of a batch that the checkpoint does not know")
    other = left.path / "notes.txt"
    other.write_text("of the user")
    train.main(["fit", *broken, "--resume", "auto"])
    assert other.exists()
    assert left.batches() == wanted.batches() == list(range(5))
    assert len(list(left.path.glob("batch*"))) == 5
    for number in range(5):
        assert left.rows(number).read_text() == wanted.rows(number).read_text()
