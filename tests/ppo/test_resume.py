"""A PPO run that broke off and was resumed is the uninterrupted one, to the last digit."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from common.run_folder import RunFolder
from tests.breaking import break_off

SETTINGS = {
    "fresh LoRA": ["--model.policy.r", "4"],
    "trained LoRA": ["--model.adapter", "lora"],
    "fresh soft prompt": ["--model.policy", "SoftPromptPolicy", "--model.policy.virtual_tokens=5"],
    "full": ["--model.policy", "FullPolicy"],
    "rloo": ["--model.advantage", "RLOO", "--model.ppo.samples", "2"],
}
CLOCK = ("time/", "perf/")


class BreakOff(L.Callback):
    """Ends a run as a fault in the middle of an epoch does."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.lightning_module.batches_done == 3:
            raise RuntimeError("broken off on purpose")


def figures(folder: Path) -> list[dict[str, str]]:
    rows = RunFolder(folder).read_metrics_csv()
    return [{k: v for k, v in row.items() if v and not k.startswith(CLOCK)} for row in rows]


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_resumed_run_is_the_uninterrupted_one(
    tiny_ppo: list[str],
    tmp_path: Path,
    kind: str,
    trained_adapter: str,
) -> None:
    own = [trained_adapter if word == "lora" else word for word in SETTINGS[kind]]
    whole, broken = ([*tiny_ppo, *own, "--run_dir", str(tmp_path / name)] for name in ("a", "b"))
    train.main(["fit", *whole])
    with pytest.raises(RuntimeError, match="on purpose"):
        train.main(["fit", *broken, "--trainer.callbacks+", "tests.ppo.test_resume.BreakOff"])
    train.main(["fit", *broken, "--resume", "auto"])
    compare(tmp_path / "a", tmp_path / "b")


def compare(whole: Path, parts: Path) -> None:
    """Assert that an interrupted run of ten batches has the state and figures of a whole one."""
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, parts)
    ]
    assert states[0]["ppo"] == states[1]["ppo"]
    assert states[0]["ppo"]["batches_done"] == 10
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    found = figures(whole)
    assert len([row for row in found if "objective/kl" in row]) == 10
    assert found == figures(parts)


def test_a_fault_within_a_batch_never_leaves_half_of_its_updates(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    run = [*tiny_ppo, "--checkpoint.every_n_train_steps", "4"]
    whole, parts = ([*run, "--run_dir", str(tmp_path / name)] for name in ("a", "b"))
    train.main(["fit", *whole])
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    # Two steps a batch. First before any step of the fourth batch, then between its two.
    for hook, call in (("on_before_backward", 7), ("on_before_optimizer_step", 2)):
        resume = ["--resume", "auto"] if last.exists() else []
        with pytest.raises(RuntimeError, match="broken off"):
            train.main(["fit", *parts, *resume, *break_off(hook, call, "error")])
        assert torch.load(last, weights_only=True)["ppo"]["batches_done"] == 3
    train.main(["fit", *parts, "--resume", "auto"])
    compare(tmp_path / "a", tmp_path / "b")


def test_a_run_that_breaks_off_before_its_first_batch_validates_the_start_once(
    tiny_ppo: list[str], tmp_path: Path
) -> None:
    whole, parts = ([*tiny_ppo, "--run_dir", str(tmp_path / name)] for name in ("a", "b"))
    train.main(["fit", *whole])
    with pytest.raises(RuntimeError, match="broken off"):
        train.main(["fit", *parts, *break_off("on_train_batch_start", 1, "error")])
    assert [row["step"] for row in figures(tmp_path / "b")] == ["0"]
    train.main(["fit", *parts, "--resume", "auto"])
    compare(tmp_path / "a", tmp_path / "b")


def test_a_signal_lets_a_batch_of_ppo_finish(tiny_ppo: list[str], tmp_path: Path) -> None:
    run = ["fit", *tiny_ppo, "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train.main([*run, *break_off("on_before_backward", 3, "sigint")])
    assert stop.value.code == 130
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (state["ppo"]["batches_done"], state["global_step"]) == (2, 4)


def test_another_reference_is_refused(
    tiny_ppo: list[str],
    tmp_path: Path,
    trained_adapter: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in Path(trained_adapter).iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    run = [*tiny_ppo, "--model.adapter", str(adapter), "--run_dir", str(tmp_path / "run")]
    train.main(["fit", *run, "--trainer.max_epochs", "1"])
    weights = adapter / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(SystemExit):
        train.main(["fit", *run, "--resume", "auto"])
    assert "the reference is not that of the run" in capsys.readouterr().err
