"""PPO skips a minibatch or a batch that is not finite, and nothing else moves."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import replay
import train
from lightning_modules import PPOPolicy
from lightning_modules.faults import Fault
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from run_folder import RunFolder
from tests.batches import loader, make_batch, make_trainer
from tests.breaking import poison
from tests.launching import last_words, run_ranks
from tests.ppo.test_policy import make_policy

PPO = PPOConfig(
    max_new_tokens=6, minibatch_size=3, epochs=2, normalise_scores=True, kl_target=0.5,
    kl_horizon=50,
)  # fmt: skip


def nan_where(
    predictions: list[str], dialogues: list[str], references: list[list[str]], words: str
) -> list[float]:
    return [float("nan") if words in dialogue else len(dialogue) % 7 for dialogue in dialogues]


def everything(module: PPOPolicy) -> dict[str, Any]:
    """All that an update may change, but for the schedule."""
    weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    optimizer: Any = module.trainer.optimizers[0]
    moments = module.shaping.moments
    return {
        "weights": weights,
        "optimizer": deepcopy(optimizer.state_dict()["state"]),
        "loop": [module.kl_coef.beta, moments.count, moments.mean, moments.squares],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


class Watcher(L.Callback):
    """Notes for each batch whether anything moved, and the rate that it had."""

    def __init__(self) -> None:
        self.moved: list[bool] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.before = everything(pl_module)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.moved.append(not same(self.before, everything(pl_module)))


def test_a_batch_with_a_bad_reward_is_skipped_whole(t5: str, roberta: str, tmp_path: Path) -> None:
    reward = FunctionReward("tests.ppo.test_faults.nan_where", {"words": "umbrella"})
    module = make_policy(t5, roberta, ppo=PPO, schedule="linear", extra_rewards={"length": reward})
    met: list[Fault] = []
    module.on_fault = met.append
    watcher = Watcher()
    good, bad = make_batch(t5, 3), make_batch(t5)  # the umbrella is in the fourth row
    make_trainer(tmp_path, callbacks=[watcher]).fit(module, loader(good, bad, good))
    assert watcher.moved == [True, False, True]
    assert watcher.rates == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3])
    assert module.batches_done == 3
    (fault,) = met
    assert (fault.place, fault.unit, list(fault.ids)) == ("batch000001-reward", "batch", ["row_3"])
    assert "row_3" in str(fault)
    assert [row["terms"]["length"] != row["terms"]["length"] for row in fault.rows].count(True) == 1


def test_a_bad_minibatch_takes_no_step_and_the_others_do(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_policy(t5, roberta, ppo=PPO)
    met: list[Fault] = []
    module.on_fault = met.append
    moved: list[bool] = []
    step, backward = PPOPolicy.step, PPOPolicy.manual_backward

    def watched(self: PPOPolicy, *arguments: Any) -> Any:
        before = everything(self)
        done = step(self, *arguments)
        moved.append(not same(before, everything(self)))
        return done

    def poisoned(self: PPOPolicy, loss: torch.Tensor) -> None:
        backward(self, loss * (torch.nan if len(moved) == 2 else 1.0))

    monkeypatch.setattr(PPOPolicy, "step", watched)
    monkeypatch.setattr(PPOPolicy, "manual_backward", poisoned)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, loader(make_batch(t5)))  # two minibatches in each of two epochs
    assert moved == [True, True, False, True]
    (fault,) = met
    assert (fault.place, fault.what) == ("batch000000-step00000002", "the gradient's norm is nan")
    assert len(fault.rows) == 3
    assert set(fault.ids) <= {f"row_{number}" for number in range(6)}
    logged = trainer.callback_metrics
    assert logged["ppo/policy/skipped"] == 1
    assert all(value.isfinite() for name, value in logged.items() if name.startswith("ppo/"))


def test_a_batch_of_which_no_minibatch_is_finite_stops_the_run(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_policy(t5, roberta, ppo=PPO)
    module.on_fault = lambda fault: None
    monkeypatch.setattr(
        PPOPolicy, "manual_backward", lambda self, loss: (loss * torch.nan).backward()
    )
    with pytest.raises(FloatingPointError, match="none of its minibatches is finite"):
        make_trainer(tmp_path).fit(module, loader(make_batch(t5)))


def test_both_are_recorded_and_replayed(
    tiny_ppo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    reward = {"function": "tests.ppo.test_faults.nan_where", "arguments": {"words": "7 apples"}}
    terms = {"length": {"class_path": "FunctionReward", "init_args": reward}}
    train.main(
        ["fit", *tiny_ppo, "--run_dir", str(run.path), "--trainer.max_epochs", "1",
         "--model.extra_rewards", json.dumps(terms), "--faults.skips", "4",
         "--config", "configs/overlays/rollouts.yaml", *poison(3, of="passes")]
    )  # fmt: skip
    skipped = {each["unit"]: each for each in run.read_summary()["skipped"]}
    assert set(skipped["batch"]["rows"]) <= {"row_7", "row_17"}
    for each in run.read_summary()["skipped"]:
        rows = (run.faults / f"{each['place']}-rank0.jsonl").read_text(encoding="utf-8")
        assert {json.loads(line)["id"] for line in rows.splitlines()} >= set(each["rows"])
    assert replay.main([str(run.path), "--fault", skipped["batch"]["place"]]) == 0
    assert "nan" in capsys.readouterr().out
    assert replay.main([str(run.path), "--fault", skipped["minibatch"]["place"]]) == 1


def test_ranks_skip_together_what_one_of_them_met(tiny_ppo: list[str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    reward = {"function": "tests.ppo.test_faults.nan_where", "arguments": {"words": "7 apples"}}
    terms = {"length": {"class_path": "FunctionReward", "init_args": reward}}
    arguments = [
        "fit", *tiny_ppo, "--run_dir", str(run.path), "--trainer.max_epochs", "1",
        "--model.extra_rewards", json.dumps(terms), "--faults.skips", "2",
        "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2",
        "--model.ppo.minibatch_size", "2", "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
    codes = run_ranks(lambda: train.main(arguments), tmp_path)
    assert codes == [0, 0], last_words(tmp_path)
    places = [each["place"] for each in run.read_summary()["skipped"]]
    assert places
    for place in places:
        rows = [(run.faults / f"{place}-rank{rank}.jsonl").read_text() for rank in (0, 1)]
        assert any("7 apples" in each for each in rows)
        assert not all("7 apples" in each for each in rows)
    last = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert last["ppo"]["batches_done"] == 5
    assert last["global_step"] == 2 * (5 - len(places))
