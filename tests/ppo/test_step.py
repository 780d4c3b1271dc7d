"""What a step hands over: every number of a rollout in its JSON line, in a resumed run too."""

import json
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
from lightning_modules.ppo.advantages import GRPO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from tests.batches import loader, make_batch, make_trainer
from tests.ppo.kinds import KINDS, adamw, make_policy
from tests.tiny_run import TinyModule
from tests.tiny_run import loader as tiny_loader

PPO = PPOConfig(max_new_tokens=40, minibatch_size=4, epochs=2, normalize_scores=True)
CASES: dict[str, dict[str, Any]] = {
    "gae": {"ppo": replace(PPO, kl_target=0.5, kl_horizon=50.0)},
    "grpo": {
        "advantage": GRPO(),
        "policy": KINDS["decoder LoRA"][0],
        "ppo": replace(PPO, samples=3, kl_estimator="k2", kl_in_loss=True, kl_coef=0.3),
    },
    "bf16": {"ppo": replace(PPO, microbatch_size=2)},
}


class Keep(L.Callback):
    """Keep what the steps returned."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["step"])


def fit(t5: str, roberta: str, folder: Path, case: str, **settings: Any) -> list[Any]:
    """Train on batches of 6 and 2 prompts, and write the rollouts; return the steps."""
    torch.manual_seed(3)
    terms = {"long": FunctionReward("tests.ranks.count_letters")}
    own = {"extra_rewards": terms, "optimizer": adamw(0.02)} | CASES[case] | settings
    keep, precision = Keep(), "bf16-mixed" if case == "bf16" else "32-true"
    trainer = make_trainer(folder, callbacks=[keep, RolloutWriter()], precision=precision)
    trainer.fit(make_policy(t5, roberta, **own), loader(make_batch(t5), make_batch(t5, rows=2)))
    return keep.steps


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_a_line_is_a_rollout_to_the_last_digit(
    case: str, t5: str, roberta: str, tmp_path: Path
) -> None:
    samples = CASES[case]["ppo"].samples
    for number, step in enumerate(fit(t5, roberta, tmp_path, case)):
        rows, rollout = read_rows(RolloutFiles(tmp_path).rows(number)), step.rollout
        numbers = step.per_token() | {"response_tokens": rollout.responses}
        assert (numbers["values"] is None) == (numbers["returns"] is None) == (case == "grpo")
        for name, tensor in numbers.items():
            if tensor is None:
                assert {row[name] for row in rows} == {None}
                continue
            written = torch.tensor([value for row in rows for value in row[name]])
            assert torch.equal(written.to(tensor.dtype), tensor[rollout.mask]), name
        batch = make_batch(t5, rows=len(rows) // samples)
        assert [row["id"] for row in rows[::samples]] == batch["ids"]
        assert [row["prompt"] for row in rows[::samples]] == batch["dialogues"]
        assert [row["response"] for row in rows] == step.texts
        assert [row["batch"] for row in rows] == [number] * len(rows)
        assert torch.equal(torch.tensor([row["score"] for row in rows]), step.scores)
        for row, finished in zip(rows, rollout.finished.tolist(), strict=True):
            assert row["finished"] == finished == (row["response_tokens"][-1] == 1)
            assert 1 not in row["response_tokens"][:-1]
            assert row["prompt_tokens"][-1] == 1
            pieces = [p for p in row["response_pieces"] if p not in ("<pad>", "</s>", "<unk>")]
            assert decoders.ByteLevel().decode(pieces).strip() == row["response"]
            assert list(row["terms"]) == ["reward_model", "long"]
            assert row["score"] == pytest.approx(sum(row["terms"].values()), rel=1e-6)
    if case == "grpo":
        assert len({len(row["response_tokens"]) for row in rows}) > 1


def test_new_log_probabilities_are_those_of_the_last_epoch(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    """The first epoch of one minibatch sees the policy that sampled, the second the next one."""
    means = []
    for epochs in (1, 2):
        ppo = replace(PPO, epochs=epochs, minibatch_size=6)
        step = fit(t5, roberta, tmp_path / str(epochs), "gae", ppo=ppo)[0]
        old, new = (each[step.rollout.mask] for each in (step.rollout.logprobs, step.new_logprobs))
        assert torch.allclose(new, old, atol=1e-5) == (epochs == 1)
        means.append(float((new - old).exp().mean()))
    # What is logged is the mean over both epochs.
    assert sum(means) / 2 == pytest.approx(float(step.metrics["ppo/policy/ratio"]), abs=1e-5)


def test_line_breaks_in_a_text_do_not_break_the_line(t5: str, roberta: str, tmp_path: Path) -> None:
    texts = ["a\u2028b\x85c\nd\re"] * 6
    step = replace(fit(t5, roberta, tmp_path, "gae")[0], texts=texts)
    path = tmp_path / "rows.jsonl"
    write_lines(path, step.to_records(["x"] * 6, ["y"] * 6, lambda tokens: [""] * len(tokens)))
    assert [row["response"] for row in read_rows(path)] == texts


def test_modules_without_rollouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TinyModule samples no rollouts"):
        make_trainer(tmp_path, callbacks=[RolloutWriter()]).fit(TinyModule(), tiny_loader())
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        RolloutWriter(every=0)


def test_a_resumed_run_leaves_the_rollouts_of_the_uninterrupted_one(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    args = [
        *tiny_ppo, "--config", "configs/overlays/rollouts.yaml", "--trainer.max_epochs", "1",
        "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
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
    for number in range(5):
        assert left.rows(number).read_text() == wanted.rows(number).read_text()
