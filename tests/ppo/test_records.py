"""Rollouts on disk: nothing is lost on the way there and back, and an update can be made again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import decoders
from torch import Tensor

import train
from callbacks.rollouts import RolloutFolder, RolloutWriter
from common.run_folder import write_lines, write_text
from lightning_modules import PPOPolicy
from lightning_modules.ppo.advantages import GRPO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import LoRAPolicy
from lightning_modules.ppo.records import PER_TOKEN, describe, from_records, to_records
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
    """Keeps what the steps returned, and the weights before each of them."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(trained(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs)


def trained(module: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


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
    keep, writer = Keep(), RolloutWriter(every=every, checkpoint_every=every)
    module = make_policy(t5, roberta, **settings)
    rows = [make_batch(t5, rows) for rows in (6, 5, 2)][:batches]
    trainer = make_trainer(folder, callbacks=[keep, writer], precision=precision or "32-true")
    trainer.fit(module, loader(*rows))
    return keep, module


Kept = tuple[Keep, PPOPolicy, Path, dict[str, Any]]


@pytest.fixture(scope="module", params=CASES)
def kept(t5: str, roberta: str, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Kept:
    """A run of three batches with its rollouts."""
    folder, settings = tmp_path_factory.mktemp("kept"), CASES[request.param]
    keep, module = fit(t5, roberta, folder, precision=PRECISION.get(request.param), **settings)
    return keep, module, folder, settings


def test_what_is_read_is_what_was_written_to_the_last_bit(kept: Kept) -> None:
    keep, _, folder, settings = kept
    for number, step in enumerate(keep.steps):
        read = RolloutFolder(folder).read(number, 0, pad_id=0)
        wrote = step["experience"]
        rollout = wrote.rollout._replace(encoded=None)
        assert_same(read.experience.rollout.prompts, rollout.prompts)
        assert_same(read.experience.rollout._replace(prompts=None), rollout._replace(prompts=None))
        assert_same(read.experience._replace(rollout=None), wrote._replace(rollout=None))
        assert_same(
            (read.rewards, read.scores, read.shaped, *read.terms.values()),
            (step["rewards"], step["score"], step["shaped"], *step["terms"].values()),
        )
        assert list(read.terms) == ["reward_model", "long"]
        assert (read.beta, read.batch, read.rank, read.ranks) == (step["beta"], number, 0, 1)
        assert read.samples == settings["ppo"].samples
        assert read.figures == {name: float(value) for name, value in step["figures"].items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def assert_same(read: Any, wrote: Any) -> None:
    assert len(read) == len(wrote)
    for one, other in zip(read, wrote, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


def test_a_line_is_a_rollout_that_people_can_read(t5: str, roberta: str, tmp_path: Path) -> None:
    keep, _ = fit(t5, roberta, tmp_path, batches=1, **CASES["grpo"])
    (step,) = keep.steps
    rows = read_rows(RolloutFolder(tmp_path).rows(0))
    batch = make_batch(t5)
    assert [row["id"] for row in rows] == [f"row_{i}" for i in range(6) for _ in range(3)]
    assert [row["prompt"] for row in rows[::3]] == batch["dialogues"]
    assert [row["response"] for row in rows] == step["texts"]
    for row, mask, finished in zip(
        rows, step["experience"].rollout.mask, step["experience"].rollout.finished, strict=True
    ):
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
        rows = read_rows(RolloutFolder(tmp_path / str(epochs)).rows(0))
        old, new = (
            torch.tensor([number for row in rows for number in row[name]])
            for name in ("logprobs", "new_logprobs")
        )
        assert len(new) == int(step["experience"].rollout.mask.sum())
        assert torch.allclose(new, old, atol=1e-5) == (epochs == 1)
        means.append(float((new - old).exp().mean()))
    # What is logged is the mean over both epochs.
    logged = float(step["figures"]["ppo/policy/ratio"])
    assert sum(means) / 2 == pytest.approx(logged, abs=1e-5)


def test_line_breaks_within_a_text_break_no_line(kept: Kept, tmp_path: Path) -> None:
    keep, _, _, _ = kept
    step = dict(keep.steps[0]) | {"texts": ["a\u2028b\x85c\nd\re"] * 18}
    folder = RolloutFolder(tmp_path)
    path = folder.rows(0)
    write_text(path.with_suffix(".json"), json.dumps(describe(step, 0, 1, [0.1])))
    write_lines(path, to_records(step, ["x"] * 6, ["y"] * 6, spell))
    assert_same([folder.read(0, 0, 0).rewards], [step["rewards"]])


def test_numbers_that_are_hard_to_write_survive(t5: str, roberta: str, tmp_path: Path) -> None:
    """Neighbours, subnormals and the like, in place of log-probabilities."""
    keep, _ = fit(t5, roberta, tmp_path, batches=1)
    step = keep.steps[0]
    rollout = step["experience"].rollout
    bits = torch.randint(-(2**31), 2**31, rollout.mask.shape, dtype=torch.int64).to(torch.int32)
    hard = bits.view(torch.float32).nan_to_num(0.1).masked_fill(~rollout.mask, 0.0)
    step["experience"] = step["experience"]._replace(rollout=rollout._replace(logprobs=hard))
    text = json.dumps([describe(step, 0, 1, [0.1]), to_records(step, ["x"] * 6, ["y"] * 6, spell)])
    about, rows = json.loads(text)
    read = from_records(rows, about, 0).experience.rollout.logprobs
    assert torch.equal(read.view(torch.int32), hard.view(torch.int32))


def test_other_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TinyModule makes no rollouts"):
        make_trainer(tmp_path, callbacks=[RolloutWriter()]).fit(TinyModule(), tiny_loader())
    for name in ("every", "checkpoint_every"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            RolloutWriter(**{name: 0})


# By the command line ----------------------------------------------------------------------------

OVERLAY = [
    "--config", "configs/overlays/rollouts.yaml", "--trainer.callbacks.checkpoint_every", "1",
]  # fmt: skip


def test_a_resumed_run_leaves_the_rollouts_of_the_uninterrupted_one(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    args = [*tiny_ppo, *OVERLAY, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    whole, broken = ([*args, "--run_dir", str(tmp_path / name)] for name in "ab")
    train.main(["fit", *whole])
    with pytest.raises(RuntimeError, match="on purpose"):
        train.main(["fit", *broken, "--trainer.callbacks+", "tests.ppo.test_resume.BreakOff"])
    left, wanted = RolloutFolder(tmp_path / "b"), RolloutFolder(tmp_path / "a")
    assert left.batches() == [0, 1, 2]
    for path in (left.rows(7), left.rows(7).with_suffix(".json"), left.checkpoint(7)):
        path.write_text("of a batch that the checkpoint does not know")
    other = left.path / "notes.txt"
    other.write_text("of the user")
    train.main(["fit", *broken, "--resume", "auto"])
    assert other.exists()
    assert left.batches() == wanted.batches() == list(range(5))
    assert len(list(left.path.glob("batch*"))) == 3 * 5
    for number in range(5):
        assert left.rows(number).read_text() == wanted.rows(number).read_text()
