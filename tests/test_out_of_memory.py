"""Memory that runs out: a message that helps, or the same step in halves."""

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from callbacks.out_of_memory import explain
from datamodules.rows import take_rows
from lightning_modules import FullFT
from lightning_modules.out_of_memory import attempt, is_out_of_memory
from lightning_modules.ppo.config import PPOConfig
from tests.batches import loader, make_batch, make_trainer, settle
from tests.breaking import break_off, differences, take_result
from tests.conftest import Fit
from tests.ppo.test_policy import make_policy

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
cross_entropy = F.cross_entropy


class Bomb(torch.autograd.Function):
    """Does nothing forward, and backward runs out of memory."""

    @staticmethod
    def forward(context: Any, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(MESSAGE)


class SmallMemory:
    """Stands in for cross_entropy: there is room for so many labels, and no more.

    Args:
        labels: How many.
        where: The pass in which it shows.
    """

    def __init__(self, labels: int, where: str) -> None:
        self.labels = labels
        self.where = where
        self.failures = 0

    def __call__(self, logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        # The plan of the run's memory takes a step too, on tensors without content.
        planned = isinstance(logits, FakeTensor)
        if len(labels) > self.labels and logits.requires_grad and not planned:
            self.failures += 1
            if self.where == "forward":
                raise torch.OutOfMemoryError(MESSAGE)
            logits = Bomb.apply(logits)
        return cross_entropy(logits, labels, **settings)


def course(t5: str, folder: Path, halve: bool, accumulate: int = 1, **settings: Any) -> Any:
    """Train every weight on two batches, twice; give the module and its logged losses."""
    module = settle(
        FullFT(backbone=t5, dropout=0.0, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **settings)
    )
    module.halve_on_oom = halve
    batches = [make_batch(t5), take_rows(make_batch(t5), 1, 4)]
    trainer = make_trainer(folder, max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(module, loader(*batches))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return module, found


@pytest.fixture
def no_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is freed where nothing was taken: a collection costs a second here."""
    monkeypatch.setattr("lightning_modules.out_of_memory.gc.collect", lambda: 0)


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    ("where", "accumulate", "labels"),
    [("forward", 1, 60), ("backward", 1, 60), ("forward", 2, 21), ("backward", 2, 21)],
)
def test_halves_give_the_step_of_the_whole(
    where: str, accumulate: int, labels: int, t5: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole, expected = course(t5, tmp_path, False, accumulate)
    memory = SmallMemory(labels, where)
    monkeypatch.setattr(F, "cross_entropy", memory)
    halved, found = course(t5, tmp_path, True, accumulate)
    assert memory.failures >= 1
    assert "the step begins again, in halves" in caplog.text
    assert found == pytest.approx(expected, rel=1e-5)
    for (name, one), other in zip(whole.named_parameters(), halved.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name
    before = memory.failures  # what fits is remembered
    course_again, _ = course(t5, tmp_path, True, accumulate)
    assert memory.failures == 2 * before
    assert course_again.room == halved.room


@pytest.mark.usefixtures("no_gc")
def test_one_row_that_does_not_fit_ends_the_run(
    t5: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "cross_entropy", SmallMemory(5, "forward"))
    with pytest.raises(torch.OutOfMemoryError, match="a single row of"):
        course(t5, tmp_path, True)


@pytest.mark.usefixtures("no_gc")
def test_ppo_halves_its_passes(
    t5: str, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_modules.ppo import learner as learner_module
    from lightning_modules.ppo import token_scores as scores_module

    settings = {"ppo": PPOConfig(max_new_tokens=8, minibatch_size=6, epochs=2, reuse_sampler=False)}

    def fit() -> Any:
        torch.manual_seed(0)
        module = make_policy(t5, roberta, **settings)
        module.halve_on_oom = module.gate_passed = True
        trainer = make_trainer(tmp_path)
        trainer.fit(module, loader(make_batch(t5)))
        return module, trainer.callback_metrics

    whole, expected = fit()
    loss, score, sizes = learner_module.minibatch_loss, scores_module.score_tokens, []

    def small_loss(model: Any, head: Any, part: Any, config: Any) -> Any:
        sizes.append(len(part.rollout.responses))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError(MESSAGE)
        return loss(model, head, part, config)

    def small_score(model: Any, encoded: Any, responses: Tensor, *more: Any) -> Any:
        if len(responses) > 3:
            raise torch.OutOfMemoryError(MESSAGE)
        return score(model, encoded, responses, *more)

    monkeypatch.setattr(learner_module, "minibatch_loss", small_loss)
    monkeypatch.setattr(scores_module, "score_tokens", small_score)
    halved, found = fit()
    assert (whole.microbatch_size, halved.microbatch_size) == (None, 1)
    assert sizes == [3, *[1] * 12]
    for name in ("objective/kl", "objective/reward", "ppo/policy/loss", "ppo/val/loss"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-5), name
    for (name, one), other in zip(whole.named_parameters(), halved.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=2e-5), name


@pytest.mark.usefixtures("no_gc")
def test_the_size_that_fits_is_kept_when_a_run_is_resumed(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(60, "forward")
    monkeypatch.setattr(F, "cross_entropy", memory)
    settings = ["--oom.halve", "true", "--trainer.max_epochs", "1"]
    fit("lora", tmp_path / "whole", *settings)
    failures = memory.failures
    with pytest.raises(RuntimeError):
        broken = break_off("on_train_batch_start", 5, "error")
        fit("lora", tmp_path / "parts", *settings, *broken)
    fit("lora", tmp_path / "parts", *settings, "--resume", "auto")
    assert memory.failures == 2 * failures > 0
    whole, parts = take_result(tmp_path / "whole"), take_result(tmp_path / "parts")
    assert differences(parts, whole) == []


# The message ------------------------------------------------------------------------------------


def test_the_message_names_the_batch_and_what_helps(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, "cross_entropy", SmallMemory(60, "backward"))
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run")
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB" in said
    assert re.search(
        r"epoch 0 at step \d; the batch has 4 rows, input_ids \[4, \d+\], labels", said
    )
    assert "--data.batch_size 2 --trainer.accumulate_grad_batches 2, or --oom.halve true" in said
    assert "--plan_memory" in said
    assert "Traceback" not in said


def in_little_memory(work: Callable[[], None], spare: int) -> int:
    """Do work in a child process that may take so many bytes more than it has; give its code."""
    child = os.fork()
    if child == 0:
        code: object = 1
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            taken = pages * resource.getpagesize() + spare
            resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code if isinstance(code, int) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("settings", "code"), [([], 2), (["--oom.halve", "true"], 0)])
def test_a_machine_without_memory(
    settings: list[str], code: int, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_loss = FullFT.token_loss

    def hungry(self: Any, batch: Any) -> Any:
        kept = torch.empty(len(batch["ids"]), 2**28, dtype=torch.uint8)  # 256 MiB a row
        loss, count = token_loss(self, batch)
        return loss + 0.0 * kept[0, 0].float(), count

    def work() -> None:
        monkeypatch.setattr(
            "lightning_modules.summarization.SummarizationModule.token_loss", hungry
        )
        fit("lora", tmp_path / "run", "--trainer.max_epochs", "1", "--trainer.limit_val_batches",
            "0", "--checkpoint.monitor", "null", *settings)  # fmt: skip

    assert in_little_memory(work, 800 * 2**20) == code


def test_what_is_out_of_memory_and_what_is_not() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError(MESSAGE))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert "of the machine" in explain(of_torch.value)
    with pytest.raises(RuntimeError, match="shapes"):
        attempt(lambda: torch.empty(3) + torch.empty(2, 2, 2) if False else fail())


def fail() -> None:
    raise RuntimeError("shapes differ")


def test_several_ranks_are_refused(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit("lora", tmp_path / "run", "--oom.halve", "true", "--trainer.devices", "2",
            "--trainer.strategy", "ddp_fork")  # fmt: skip
    assert stop.value.code == 2
    assert ": oom.halve: on several devices" in capsys.readouterr().err
