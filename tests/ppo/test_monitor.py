"""KLCallback and PPOMonitor: what they log and report, how often, and what stops a run."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint import RunCheckpoint
from callbacks.export import ExportCallback
from callbacks.kl import KLCallback
from callbacks.monitor import PPOMonitor
from common.run_folder import RunFolder
from lightning_modules import PPOPolicy
from lightning_modules.backbones import Prompts
from lightning_modules.policies.kinds import LoRAPolicy
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.rollout import Rollout
from tests.batches import loader, make_batch, make_trainer
from tests.conftest import adamw
from tests.ppo.kinds import DECODING


class Module:
    """Stand-in for a PPOPolicy that records what is logged."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: Any, **settings: Any) -> None:
        self.logged[name] = float(value)


def make_run(reduce: Any = None) -> Any:
    return SimpleNamespace(
        should_stop=False, is_global_zero=True, sanity_checking=False, callback_metrics={},
        state=SimpleNamespace(fn=TrainerFn.FITTING), global_step=1,
        world_size=1 if reduce is None else 2, strategy=SimpleNamespace(reduce=reduce),
    )  # fmt: skip


def step(
    kl: list[float] | None = None, entropy: float = 2.0, score: list[float] | None = None
) -> dict[str, Any]:
    """A batch of rollouts of three tokens, of which the last is padding in the first one."""
    kl = kl or [0.0, 0.0]
    mask = torch.ones(len(kl), 3, dtype=torch.bool)
    mask[0, 2] = False
    reference = torch.zeros(len(kl), 3)
    logprobs = reference.clone()
    logprobs[:, 0] = torch.tensor(kl)  # k1 of the sequence
    logprobs[0, 2] = 99.0  # padding
    numbers = torch.full((len(kl), 3), entropy) * mask
    prompts = Prompts(torch.ones(2, 1), torch.ones(2, 1))
    rollout = Rollout(
        prompts, torch.arange(len(kl)), mask.long(), mask, mask[:, 0], logprobs, reference,
        numbers, numbers,
    )  # fmt: skip
    scores = torch.tensor(score or [1.0, 3.0])
    return {"step": SimpleNamespace(rollout=rollout, scores=scores)}


class Watched:
    """A callback with a run that tests drive by hand."""

    def __init__(self, watch: Any, reduce: Any = None) -> None:
        self.watch = watch
        self.module = Module()
        self.run = make_run(reduce)

    def batch(self, **settings: Any) -> bool:
        self.watch.on_train_batch_end(self.run, self.module, step(**settings), None, 0)
        return self.run.should_stop

    def validation(self, **metrics: float) -> bool:
        self.run.callback_metrics = {
            f"val/{name}": torch.tensor(value) for name, value in metrics.items()
        }
        self.watch.on_validation_end(self.run, self.module)
        return self.run.should_stop


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The conditions that were warned of since the last call."""
    found = [r.getMessage().split(",")[0] for r in caplog.records if ", step" in r.getMessage()]
    caplog.clear()
    return found


def test_spread_of_the_kl_is_logged() -> None:
    watched = Watched(KLCallback())
    assert not watched.batch(kl=[2.0, 4.0])
    k3 = math.exp(-4.0) - 1 + 4.0
    assert watched.module.logged == {
        "objective/kl_std": 1.0, "objective/kl_max": 4.0, "objective/kl_k3_max": pytest.approx(k3),
    }  # fmt: skip
    watched.batch(kl=[0.5, 0.5])
    assert watched.module.logged["objective/kl_std"] == 0
    watched.watch.on_train_batch_end(watched.run, watched.module, {}, None, 0)  # a skipped batch


def test_kl_is_reported_once_each_time_it_exceeds_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched(PPOMonitor(kl_limit=3.0))
    assert not watched.batch(kl=[2.0, 4.0])
    assert warned(caplog) == []
    watched.batch(kl=[2.0, 4.1])
    assert "the KL of 3.05 nats per sequence is above the limit of 3.0" in caplog.text
    assert warned(caplog) == ["kl"]
    watched.batch(kl=[9.0, 9.0])
    assert warned(caplog) == []
    watched.batch(kl=[0.0, 0.0])
    watched.batch(kl=[9.0, 9.0])
    assert warned(caplog) == ["kl"]
    assert not watched.run.should_stop
    assert Watched(PPOMonitor(kl_limit=3.0, stop_on=["kl"])).batch(kl=[9.0, 9.0])
    assert not Watched(PPOMonitor(kl_limit=None, stop_on=["kl"])).batch(kl=[1e9, 1e9])


def test_a_collapsed_entropy_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(PPOMonitor(entropy_floor=0.25))
    for entropy, expected in ((2.0, []), (0.6, []), (0.49, ["entropy"]), (0.1, []), (0.51, [])):
        watched.batch(entropy=entropy)
        assert warned(caplog) == expected, entropy
    assert Watched(PPOMonitor(entropy_floor=0.25, stop_on=["entropy"])).batch(entropy=0.1) is False
    silent = Watched(PPOMonitor(entropy_floor=None, stop_on=["entropy"]))
    silent.batch(entropy=2.0)
    assert not silent.batch(entropy=0.0)


FALLS = {"val/rouge1": 0.05, "val/judge": 0.2}


@pytest.fixture
def hacked() -> Watched:
    """Scores of 1 and 3 at the start, so of standard deviation 1; a rise of 1 afterwards."""
    watched = Watched(PPOMonitor(window=2, reward_rise=0.9, falls=FALLS))
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
    assert "rose by 1.00 standard deviations while val/rouge1 fell from 0.5000 to" in caplog.text
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
    with pytest.raises(ValueError, match=r"falls names val/judge, .* it logged: val/rouge1"):
        hacked.validation(rouge1=0.3)
    hacked.run.state.fn = TrainerFn.VALIDATING
    hacked.validation(rouge1=0.3, judge=0.1)  # only a fit is stopped
    assert not hacked.run.should_stop


def test_restored_monitor_continues_and_records_every_warning(
    caplog: pytest.LogCaptureFixture, hacked: Watched, tmp_path: Path
) -> None:
    hacked.batch(kl=[99.0, 99.0], score=[2.0, 4.0])
    torch.save(hacked.watch.state_dict(), tmp_path / "state")
    fresh = PPOMonitor(window=2, reward_rise=0.9, falls=FALLS)
    fresh.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    uninterrupted, hacked.run.global_step = copy.deepcopy(hacked.watch), 8
    warned(caplog)
    for watch in (uninterrupted, fresh):
        hacked.watch = watch
        hacked.batch(kl=[99.0, 99.0], entropy=0.3, score=[2.0, 4.0])
        hacked.validation(rouge1=0.3, judge=1.0)
        assert warned(caplog) == ["entropy", "hacking"]
    assert fresh.state_dict() == uninterrupted.state_dict()
    hacked.run.default_root_dir = tmp_path
    fresh.on_fit_end(hacked.run, hacked.module)  # type: ignore[arg-type]
    kl, _, hacking = RunFolder(tmp_path).read_summary()["monitor"]
    assert (kl["condition"], kl["step"]) == ("kl", 1)
    assert kl["message"].startswith("the KL of 99.00 nats per sequence is above the limit of 20.0")
    assert (hacking["condition"], hacking["step"]) == ("hacking", 8)
    assert "val/rouge1 fell from 0.5000 to 0.3000" in hacking["message"]


@pytest.mark.parametrize(("limit", "stops"), [(17.9, True), (18.1, False)])
def test_limit_applies_to_the_mean_over_all_ranks(limit: float, stops: bool) -> None:
    # 2 rows with KL 0 here and 3 with 30 on the other rank have a mean of 18.
    other = torch.tensor([3.0, 90.0, 2700.0])
    watched = Watched(
        PPOMonitor(kl_limit=limit, stop_on=["kl"]), lambda value, reduce_op: value + other
    )
    assert watched.batch(kl=[0.0, 0.0]) == stops


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kl_limit must be above 0, got 0\.0; window must"):
        PPOMonitor(kl_limit=0.0, window=0)


# In real runs -----------------------------------------------------------------------------------


def test_a_stop_ends_the_run_after_the_batch_with_all_that_it_leaves(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    batch, folder = make_batch(t5), RunFolder(tmp_path)
    watch = PPOMonitor(kl_limit=1e-3, falls={}, stop_on=["kl"])
    keep = RunCheckpoint(monitor=None)
    trainer = make_trainer(
        tmp_path, callbacks=[watch, keep, ExportCallback()], enable_checkpointing=True
    )
    module = PPOPolicy(
        backbone=t5, reward_model=roberta, policy=LoRAPolicy(r=4, alpha=8), decoding=DECODING,
        ppo=PPOConfig(max_new_tokens=10, minibatch_size=4, epochs=1), optimizer=adamw(0.1),
    )  # fmt: skip
    trainer.fit(module, loader(*[batch] * 9))
    done = module.batches_done
    assert 1 < done < 9  # the first batch is sampled by the reference itself
    assert folder.export.is_dir()
    state = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
    assert state["ppo"]["batches_done"] == done
    assert state["callbacks"]["PPOMonitor"] == watch.state_dict()
    assert state["callbacks"]["PPOMonitor"]["active"] == ["kl"]
    (said,) = folder.read_summary()["monitor"]
    assert (said["condition"], said["step"]) == ("kl", 2 * done)  # two steps per batch
