"""benchmarks/lab3/faults.py: every fault applies, changes what is trained, and fails the gate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM

from benchmarks.lab3 import faults
from examples import nano_ppo

BACKBONE = str(faults.MINI / "t5")  # its responses end early in part
SETTINGS = nano_ppo.Settings(steps=2, batch_size=12, minibatch_size=12, max_new_tokens=24, epochs=1)

CAUGHT = {
    "none": set(),
    "reference": {"KL", "rewards"},
    "first_token": {"mask", "advantages"},
    "shift": {"score", "sampler"},
    "start_token": {"score", "sampler"},
    "dropout": {"sampler"},
    "top_k": {"sampler"},
    "temperature": {"sampler"},
    "padding": {"mask", "rewards", "advantages"},
    "eos": {"mask", "rewards", "advantages"},
    "tied_head": set(),  # policy, reference and sampler agree; tests/backbones/test_loading.py
    "reward": {"rewards"},
    "whitening": {"advantages"},
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA that computes something other than its backbone."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, target_modules=["q", "v"])
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(BACKBONE), lora)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def runs(adapter: str) -> dict[str, Any]:
    """Two short steps with each fault: what the gate found, and the weights after them."""
    judge, rows = nano_ppo.Judge(str(faults.MINI / "roberta")), faults.read_rows("train.jsonl")
    chosen = (BACKBONE, adapter, judge, rows, SETTINGS, 1)
    done = {fault: faults.train(fault, *chosen) for fault in CAUGHT}
    return {
        fault: (found["gate"], [p for p in policy.model.parameters() if p.requires_grad])
        for fault, (found, policy) in done.items()
    }


def test_all_faults_are_here() -> None:
    assert list(CAUGHT) == [fault for fault in faults.FAULTS if fault != faults.START]


@pytest.mark.parametrize("fault", CAUGHT)
def test_the_gate_catches(runs: dict[str, Any], fault: str) -> None:
    gate, _ = runs[fault]
    assert {faults.SHORT[name] for name, value in gate.items() if value > 1e-3} == CAUGHT[fault]


@pytest.mark.parametrize("fault", [fault for fault in CAUGHT if fault != faults.CORRECT])
def test_a_fault_changes_what_is_trained(runs: dict[str, Any], fault: str) -> None:
    pairs = zip(runs[fault][1], runs[faults.CORRECT][1], strict=True)
    assert max(float((own - other).detach().abs().max()) for own, other in pairs) > 1e-4


def test_an_edit_that_no_longer_applies_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = tmp_path / "nano_ppo.py"
    changed.write_text(faults.SOURCE.read_text("utf-8").replace("real = x[mask]", "real = x[m]"))
    monkeypatch.setattr(faults, "SOURCE", changed)
    with pytest.raises(ValueError, match=r"occurs 0 times.*whitening"):
        faults.edit("whitening")
