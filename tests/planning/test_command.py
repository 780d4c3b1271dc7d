"""The memory plan as its users meet it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from lightning_modules import FullFT, InContext, LoRA, PPOPolicy, SoftPrompt
from planning.command import find_compared, find_lengths, find_setting, make_plan
from planning.parts import (
    WEIGHTS,
    Computation,
    Lengths,
)

ROOT = Path(__file__).parents[2]
MINI = str(ROOT / "configs" / "overlays" / "mini.yaml")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_is_planned_and_nothing_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """With the other methods and precisions for one of them: they are the same for all."""
    monkeypatch.chdir(tmp_path)
    if config.stem != "lora":
        monkeypatch.setattr("planning.command.COMPARED", ())
        monkeypatch.setattr("planning.command.PRECISIONS", (False,))
    said = plan(capsys, "fit", "--config", str(config), "--config", MINI, "--plan_memory")
    assert "Memory at the peak" in said
    assert "32-true, 1 x CPU, single device" in said
    names = {
        "full_ft": "full", "in_context": "prompting", "ppo": "PPO", "dpo": "DPO",
        "reward": "reward model",
    }  # fmt: skip
    methods = [names.get(config.stem, config.stem.replace("_", " "))]
    if config.stem == "lora":
        methods = ["full", "LoRA *", "soft prompt", "PPO"]
    for name in (*methods, "weights", "gradients", "optimizer state", "DDP x 8", "FSDP2 x 8"):
        assert name in said
    assert "GiB go to" in said
    assert "Rule of thumb for 1,616,384" in said or config.stem != "lora"  # without the adapter's
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_neither_hub_nor_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Nothing of FLAN-T5 is here; its shape is known. r 32 on q and v of 24 attentions: each
    48 x 32 x (512 + 384)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("planning.command.COMPARED", ())
    monkeypatch.setattr("planning.command.PRECISIONS", (True,))
    said = plan(
        capsys, "fit", "--config", str(ROOT / "configs" / "lora.yaml"), "--plan_memory", "true",
        "--model.backbone", "google/flan-t5-small", "--data.source", "no/such/data",
        "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--toxicity.model", "null",
    )  # fmt: skip
    assert "1,376,256" in said
    assert "78,337,408" in said
    assert "bf16-mixed, 2 x CPU, DDP" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trainer.precision", "16-mixed"), "overflow"),
        (
            ("--model.backbone", "./no_such_folder"),
            "backbone: there is no folder './no_such_folder'",
        ),
        (("--trainer.strategy", "deepspeed"), "take zero2 or zero3"),
        (("--model.target_modules", "[nothing]"), "nothing"),
        (("--data.batch_size", "0"), "batch_size must be at least 1"),
    ],
)
def test_a_bad_setting_is_an_error_here_too(
    arguments: tuple[str, str], said: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs" / "lora.yaml")
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", "--config", config, "--config", MINI, "--plan_memory", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_the_others_are_compared_on_the_same_backbone(t5: str) -> None:
    def optimizer(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=0.1)

    module = LoRA(backbone=t5, optimizer=optimizer, dropout=0.2, r=3)
    found = find_compared(module, judge=None)
    assert [type(one) for one in found] == [FullFT, LoRA, SoftPrompt, PPOPolicy]
    assert found[1] is module
    assert {one.backbone_name for one in found} == {t5}
    assert {one.optimizer for one in found} == {optimizer}
    assert found[0].dropout == 0.2


class Settings:
    """Settings as attributes, as the command line has them."""

    def __init__(self, **values: Any) -> None:
        defaults: dict[str, Any] = {
            "accelerator": "cpu", "devices": "auto", "num_nodes": 1, "strategy": "auto",
            "precision": "32-true", "shots": 0, "batch_size": 4,
        }  # fmt: skip
        self.__dict__.update(defaults | values)


def test_the_setting_is_read_from_the_trainers() -> None:
    where = Settings(accelerator="gpu", devices="0,1", num_nodes=2, strategy="fsdp2")
    setting = find_setting(where)
    assert (setting.devices, setting.strategy, setting.computation.gpu) == (4, "fsdp", True)
    setting = find_setting(Settings(devices=[3], precision="bf16-mixed"))
    assert (setting.devices, setting.strategy) == (1, "single")
    assert setting.computation == Computation(bf16=True, gpu=False)


def test_a_limit_in_characters_is_one_in_tokens() -> None:
    data = Settings(max_source_length=512, max_target_length=64, max_dialogue_chars=900)
    assert find_lengths(data) == Lengths(4, 4, 336, 64)  # 900 / 3 + 32, padded to eights
    data = Settings(max_source_length=512, max_target_length=64, max_dialogue_chars=900, shots=1)
    assert find_lengths(data).source == 512


def test_a_plan_that_cannot_be_made_stops_no_run(t5: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(toxicity={"model": None}, trainer=Settings())
    data = Settings(max_source_length=16, max_target_length=8)
    assert make_plan(FullFT("no/such"), data, settings, trains=True) is None
    assert "could not be planned" in caplog.text
    found = make_plan(InContext(t5), data, settings, trains=True)
    assert found is not None
    assert found.method == "prompting"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells and resets it")
def test_the_peak_can_be_measured_anew() -> None:
    """64 MiB come and go before the start, 16 MiB after it: the peak is the later one's.

    In a process of its own: what other tests have left there is given back at any moment.
    """
    program = """if True:
        import os, torch
        from planning.measure import measure_peak_memory, resident_bytes, restart_peak
        cpu = torch.device("cpu")
        bytearray(os.urandom(2**26))
        assert restart_peak(cpu)
        base = resident_bytes()
        print(measure_peak_memory(cpu)[0] - base)
        held = bytearray(os.urandom(2**24))
        print(measure_peak_memory(cpu)[0] - base, measure_peak_memory(cpu)[1], sep="\\n")
    """
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    before, after, kind = said.splitlines()
    assert int(before) < 2**22
    assert int(after) > 2**24 - 2**20  # the kernel counts a thread's pages some dozens at a time
    assert kind == "process resident set"


def test_a_run_records_what_it_took_beside_its_plan(tmp_path: Path) -> None:
    arguments = [
        "--config", str(ROOT / "configs" / "lora.yaml"), "--config", MINI,
        "--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.limit_test_batches", "1", "--data.batch_size", "4",
        "--model.decoding.max_new_tokens", "4",
    ]  # fmt: skip
    train.main(["fit", *arguments])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    memory = summary["memory"]
    assert set(memory) == {
        "plan_bytes", "plan", "plan_phase", "baseline_bytes", "measured_peak_bytes",
        "measured_kind",
    }  # fmt: skip
    assert memory["plan_bytes"] == sum(memory["plan"].values())
    assert memory["plan"][WEIGHTS] == 4 * summary["parameters"]["total"]
    assert memory["plan_phase"] == "forward and backward"
    assert memory["baseline_bytes"] < memory["measured_peak_bytes"]
    assert memory["measured_kind"].startswith("process resident set")
    train.main(["test", *arguments])
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["memory"] == memory
