"""PPOWatch: what it speaks up about, when, how often, and what it does then."""

import copy
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.checkpoint import RunCheckpoint
from callbacks.export import ExportCallback
from callbacks.watch import PPOWatch
from common.run_folder import RunFolder
from lightning_modules import PPOPolicy
from lightning_modules.backbones import set_dropout
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import LoRAPolicy
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.token_scores import Prompts
from lightning_modules.ppo.update import Experience
from tests.batches import loader, make_batch, make_trainer
from tests.conftest import adamw
from tests.ppo.test_policy import DECODING
from tests.tiny_run import TinyModule
from tests.tiny_run import loader as tiny_loader


class Module:
    """As much of a PPOPolicy as a watch sees."""

    def __init__(self, exact: bool = True, sum_over_ranks: Any = lambda value: value) -> None:
        self.is_exact = exact
        self.sum_over_ranks = sum_over_ranks
        self.tokenizer = SimpleNamespace(eos_token_id=1)
        self.batches_done = 1
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: Any, **settings: Any) -> None:
        self.logged[name] = float(value)


def make_run(module: Module) -> Any:
    return SimpleNamespace(
        should_stop=False, is_global_zero=True, sanity_checking=False, lightning_module=module,
        state=SimpleNamespace(fn=TrainerFn.FITTING), callback_metrics={},
    )  # fmt: skip


def step(
    kl: list[float] | None = None,
    entropy: float = 2.0,
    approx_kl: float = 0.0,
    score: list[float] | None = None,
    wrong_mask: bool = False,
) -> dict[str, Any]:
    """A batch of two rollouts, [5, EOS] and [5, 6, 7]."""
    responses = torch.tensor([[5, 1, 0], [5, 6, 7]])
    mask = torch.tensor([[True, True, wrong_mask], [True, True, True]])
    numbers = torch.full((2, 3), entropy) * mask
    prompts = Prompts(torch.ones(2, 1), torch.ones(2, 1))
    rollout = Rollout(
        prompts, torch.arange(2), responses, mask, mask[:, 0], numbers, numbers, numbers, numbers
    )
    return {
        "kl": torch.tensor(kl or [0.0, 0.0]),
        "score": torch.tensor(score or [1.0, 3.0]),
        "experience": Experience(rollout, numbers, None, 0.0),
        "figures": {
            "ppo/policy/first_ratio": torch.tensor(1.0),
            "ppo/policy/first_approxkl": torch.tensor(approx_kl),
        },
    }


class Watched:
    """A watch with a run that tests drive by hand."""

    def __init__(self, watch: PPOWatch, **module: Any) -> None:
        self.watch = watch
        self.module = Module(**module)
        self.run = make_run(self.module)

    def batch(self, **settings: Any) -> bool:
        self.watch.on_train_batch_end(self.run, self.module, step(**settings), None, 0)
        return self.run.should_stop

    def validation(self, **metrics: float) -> bool:
        self.run.callback_metrics = {
            f"val/{name}": torch.tensor(value) for name, value in metrics.items()
        }
        self.watch.on_validation_end(self.run, self.module)  # type: ignore[arg-type]
        return self.run.should_stop


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The conditions that were warned of since the last call."""
    found = [r.getMessage().split(",")[0] for r in caplog.records if "batch" in r.getMessage()]
    caplog.clear()
    return found


def test_a_kl_is_reported_once_a_crossing(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(PPOWatch(kl_limit=3.0))
    assert not watched.batch(kl=[2.0, 4.0])  # the mean is the limit itself
    assert warned(caplog) == []
    assert watched.module.logged == {"objective/kl_std": 1.0, "objective/kl_max": 4.0}
    watched.batch(kl=[2.0, 4.1])
    assert "KL 3.05 nats a sequence has passed the limit of 3.0" in caplog.text
    assert warned(caplog) == ["kl"]
    watched.batch(kl=[9.0, 9.0])
    assert warned(caplog) == []
    watched.batch(kl=[0.0, 0.0])
    watched.batch(kl=[9.0, 9.0])
    assert warned(caplog) == ["kl"]
    assert not watched.run.should_stop
    silent = Watched(PPOWatch(kl_limit=None, stop_on=["kl"]))
    assert not silent.batch(kl=[1e9, 1e9])


def test_the_spread_of_equal_kls_is_zero() -> None:
    watched = Watched(PPOWatch())
    watched.batch(kl=[0.5, 0.5])
    assert watched.module.logged["objective/kl_std"] == 0


def test_a_collapsed_entropy_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(PPOWatch(entropy_floor=0.25))
    for entropy, expected in ((2.0, []), (0.6, []), (0.49, ["entropy"]), (0.1, []), (0.51, [])):
        watched.batch(entropy=entropy)
        assert warned(caplog) == expected, entropy
    assert Watched(PPOWatch(entropy_floor=0.25, stop_on=["entropy"])).batch(entropy=0.1) is False
    silent = Watched(PPOWatch(entropy_floor=None, stop_on=["entropy"]))
    silent.batch(entropy=2.0)
    assert not silent.batch(entropy=0.0)


def test_a_first_ratio_that_is_not_one_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    # sqrt(2 k2) is the root mean square of the log-ratio: 1.41e-4 and 0.9e-4.
    exact, half = Watched(PPOWatch()), Watched(PPOWatch(), exact=False)
    exact.batch(approx_kl=0.405e-8)
    half.batch(approx_kl=1e-8)
    assert warned(caplog) == []
    exact.batch(approx_kl=1e-8)
    assert "ratio of 1.000000 and log-ratios of 0.000141" in caplog.text
    assert warned(caplog) == ["gate"]
    half.batch(approx_kl=0.03)
    assert warned(caplog) == ["gate"]
    Watched(PPOWatch(ratio_tolerance=1e-3)).batch(approx_kl=1e-8)
    assert warned(caplog) == []
    exact.batch()
    exact.batch(approx_kl=float("nan"))
    assert warned(caplog) == ["gate"]


def test_a_wrong_mask_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert Watched(PPOWatch(stop_on=["gate"])).batch(wrong_mask=True)
    assert "and 1 tokens were masked wrongly" in caplog.text
    assert "; stopping" in caplog.text


FALLS = {"val/rouge1": 0.05, "val/judge": 0.2}


@pytest.fixture
def hacked() -> Watched:
    """Scores of 1 and 3 at the start, so of standard deviation 1; a rise of 1 afterwards."""
    watched = Watched(PPOWatch(window=2, reward_rise=0.9, falls=FALLS))
    watched.validation(rouge1=0.5, judge=1.0)
    for mean in (2.0, 2.0, 3.0, 3.0):
        watched.batch(score=[mean - 1, mean + 1])
    return watched


def test_a_rising_reward_with_a_falling_metric_is_reported(
    caplog: pytest.LogCaptureFixture, hacked: Watched
) -> None:
    hacked.validation(rouge1=0.46, judge=0.9)  # no fall is far enough
    assert warned(caplog) == []
    hacked.validation(rouge1=0.44, judge=0.9)
    assert "risen by 1.00 standard deviations while val/rouge1 fell from 0.5000 to" in caplog.text
    assert "judge" not in caplog.text
    assert warned(caplog) == ["hacking"]
    hacked.validation(rouge1=0.44, judge=0.9)
    assert warned(caplog) == []
    hacked.validation(rouge1=0.5, judge=1.0)
    hacked.watch.stop_on = ("hacking",)
    assert hacked.validation(rouge1=0.5, judge=0.79)
    assert warned(caplog) == ["hacking"]


def test_neither_a_fall_nor_a_rise_alone_is_hacking(
    caplog: pytest.LogCaptureFixture, hacked: Watched
) -> None:
    hacked.validation(rouge1=0.9, judge=2.0)
    hacked.batch(score=[0.0, 2.0])  # now the window's mean is 2 once more
    hacked.validation(rouge1=0.1, judge=0.1)
    assert warned(caplog) == []


def test_the_window_is_of_the_start_and_of_now(
    caplog: pytest.LogCaptureFixture, hacked: Watched
) -> None:
    """A rise that is not over all of the last two batches is half of one."""
    hacked.batch(score=[1.0, 3.0])
    hacked.batch(score=[2.0, 4.0])
    hacked.validation(rouge1=0.1, judge=0.1)
    assert warned(caplog) == []
    hacked.batch(score=[2.0, 4.0])
    hacked.validation(rouge1=0.1, judge=0.1)
    assert warned(caplog) == ["hacking"]


def test_a_metric_that_is_not_logged_is_named(hacked: Watched) -> None:
    with pytest.raises(ValueError, match=r"falls names val/judge, .* logged were: val/rouge1"):
        hacked.validation(rouge1=0.3)
    hacked.run.state.fn = TrainerFn.VALIDATING
    hacked.validation(rouge1=0.3)  # only a fit is watched


def test_a_watch_that_was_saved_goes_on_as_if_never_stopped(
    caplog: pytest.LogCaptureFixture, hacked: Watched, tmp_path: Path
) -> None:
    hacked.batch(kl=[99.0, 99.0], score=[2.0, 4.0])
    warned(caplog)
    torch.save(hacked.watch.state_dict(), tmp_path / "state")
    fresh = PPOWatch(window=2, reward_rise=0.9, falls=FALLS)
    fresh.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    never_stopped = copy.deepcopy(hacked.watch)
    for watch in (never_stopped, fresh):
        hacked.watch = watch
        hacked.batch(kl=[99.0, 99.0], entropy=0.3, score=[2.0, 4.0])
        hacked.validation(rouge1=0.3, judge=1.0)
        assert warned(caplog) == ["entropy", "hacking"]
    assert fresh.state_dict() == never_stopped.state_dict()


def test_what_was_said_is_in_the_summary(hacked: Watched, tmp_path: Path) -> None:
    """Once a crossing, as it was said, and what was said before a run was resumed."""
    hacked.batch(kl=[99.0, 99.0], score=[2.0, 4.0])
    fresh = PPOWatch(window=2, reward_rise=0.9, falls=FALLS)
    fresh.load_state_dict(hacked.watch.state_dict())
    hacked.watch, hacked.module.batches_done = fresh, 8
    hacked.batch(kl=[99.0, 99.0], score=[2.0, 4.0])
    hacked.validation(rouge1=0.3, judge=1.0)
    hacked.run.default_root_dir = tmp_path
    fresh.on_fit_end(hacked.run, hacked.module)  # type: ignore[arg-type]
    kl, hacking = RunFolder(tmp_path).read_summary()["watch"]
    assert (kl["condition"], kl["step"]) == ("kl", 0)
    assert kl["message"].startswith("KL 99.00 nats a sequence has passed the limit of 20.0")
    assert (hacking["condition"], hacking["step"]) == ("hacking", 7)
    assert "val/rouge1 fell from 0.5000 to 0.3000" in hacking["message"]
    other = Watched(PPOWatch())
    other.batch(kl=[1.0, 2.0])
    other.run.default_root_dir = tmp_path
    other.watch.on_fit_end(other.run, other.module)  # type: ignore[arg-type]
    assert RunFolder(tmp_path).read_summary()["watch"] == []


def test_all_ranks_decide_alike_by_all_rows() -> None:
    """Two ranks as threads: 2 rows with KL 0 and 3 with 30 make 18, and no rank alone does."""
    barrier, shared = threading.Barrier(2), [torch.zeros(()), torch.zeros(())]

    def summer(rank: int) -> Any:
        def add(value: Tensor) -> Tensor:
            shared[rank] = value
            barrier.wait()
            total = shared[0] + shared[1]
            barrier.wait()
            return total

        return add

    def decide(rank: int, limit: float, stops: dict[int, bool]) -> None:
        watched = Watched(PPOWatch(kl_limit=limit, stop_on=["kl"]), sum_over_ranks=summer(rank))
        stops[rank] = watched.batch(kl=[[0.0, 0.0], [30.0, 30.0, 30.0]][rank])

    for limit, expected in ((17.9, True), (18.1, False)):
        stops: dict[int, bool] = {}
        ranks = [threading.Thread(target=decide, args=(rank, limit, stops)) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert stops == {0: expected, 1: expected}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_limit": 0.0, "window": 0}, "kl_limit must be above 0, got 0.0; window must be"),
        ({"falls": {"val/x": -1.0}}, "PPOWatch: falls must be 0 or more, got val/x -1.0"),
        ({"stop_on": ["reward"]}, "stop_on takes kl, entropy, gate, hacking"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOWatch(**settings)


def test_other_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TinyModule is not trained by PPO"):
        make_trainer(tmp_path, callbacks=[PPOWatch()]).fit(TinyModule(), tiny_loader())


# In real runs -----------------------------------------------------------------------------------


def make_policy(t5: str, roberta: str, lr: float = 1e-3) -> PPOPolicy:
    return PPOPolicy(
        backbone=t5, reward_model=roberta, policy=LoRAPolicy(r=4, alpha=8), decoding=DECODING,
        ppo=PPOConfig(max_new_tokens=10, minibatch_size=4, epochs=1), optimizer=adamw(lr),
    )  # fmt: skip


class Spoil(L.Callback):
    """Turns dropout on where nobody looks any more."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.batches_done == 1:
            set_dropout(pl_module.model, 0.3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_dropout_that_comes_on_later_is_seen(
    t5: str, roberta: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    batch = make_batch(t5)
    for spoilt, expected in ((False, []), (True, ["gate"])):
        callbacks = [PPOWatch(falls={}), *([Spoil()] if spoilt else [])]
        trainer = make_trainer(tmp_path, callbacks=callbacks, precision=precision)
        with caplog.at_level(logging.WARNING, "callbacks.watch"):
            trainer.fit(make_policy(t5, roberta), loader(batch, batch))
        assert [name for name in warned(caplog) if name in ("gate", "kl")] == expected
        rms = (2 * trainer.callback_metrics["ppo/policy/first_approxkl"]) ** 0.5
        assert (rms > 0.2) == spoilt


def test_a_stop_ends_the_run_after_the_batch_with_all_that_it_leaves(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    batch, folder = make_batch(t5), RunFolder(tmp_path)
    watch = PPOWatch(kl_limit=1e-3, falls={}, stop_on=["kl"])
    keep = RunCheckpoint(folder.checkpoints, save_last=True, filename="best")
    trainer = make_trainer(
        tmp_path, callbacks=[watch, keep, ExportCallback()], enable_checkpointing=True
    )
    module = make_policy(t5, roberta, lr=0.1)
    trainer.fit(module, loader(*[batch] * 4))
    assert module.batches_done == 2  # the first batch is sampled by the reference itself
    assert folder.export.is_dir()
    state = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
    assert state["ppo"]["batches_done"] == 2
    assert state["callbacks"]["PPOWatch"] == watch.state_dict()
    assert state["callbacks"]["PPOWatch"]["crossed"] == ["kl"]
    (said,) = folder.read_summary()["watch"]
    assert (said["condition"], said["step"]) == ("kl", 1)
