"""The plan command: exact where it counts, and near the measured peak of real runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from alignsum.commands import plan
from common.exits import AlignsumError

ROOT = Path(__file__).parents[1]
MINI = ["--config", "configs/overlays/mini.yaml"]


def make(method: str, *more: str) -> dict[str, plan.Item]:
    config = plan.read_config(["--config", f"configs/{method}.yaml", *MINI, *more])
    return {item.what: item for item in plan.make_plan(config)}


def test_weights_gradients_and_moments_are_counted(t5: str) -> None:
    total = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_pretrained(t5).parameters())
    full = make("full_ft", "--model.backbone", t5)
    assert full["weights"].size == full["gradients"].size == 4 * total
    assert full["optimizer state"].size == 8 * total
    lora = make("lora", "--model.backbone", t5, "--model.r", "4")
    trained = 24 * 2 * 4 * 32  # q, k, v and o of 6 attentions, A and B of [4, 32]
    assert lora["weights"].size == 4 * (total + trained)
    assert lora["gradients"].size == 4 * trained
    assert lora["optimizer state"].size == 8 * trained


def test_the_head_of_an_untied_backbone_counts(t5: str) -> None:
    model = plan.build_model("FullFT", {"backbone": t5})
    assert model.lm_head.weight is not model.shared.weight


def test_activations_are_what_autograd_saves_of_real_tensors(t5: str) -> None:
    """The count on the meta device is that of the same step on the CPU."""
    model = plan.build_model("FullFT", {"backbone": t5})
    real = AutoModelForSeq2SeqLM.from_pretrained(t5, attn_implementation="eager").train()
    meta = plan.count_saved(model, 3, 20, 7)
    storages: dict[int, Any] = {}
    weights = {p.data_ptr() for p in real.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    ids, labels = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = real(input_ids=ids, decoder_input_ids=labels, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert meta == pytest.approx(sum(storage.nbytes() for storage in storages.values()), rel=0.05)


def test_activations_grow_with_rows_and_shrink_with_checkpointing(t5: str) -> None:
    name = "activations saved for the backward pass"
    sizes = [
        make("lora", "--model.backbone", t5, "--data.batch_size", str(rows))[name].size
        for rows in (4, 8)
    ]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)
    small = make(
        "lora", "--model.backbone", t5, "--data.batch_size", "8",
        "--model.gradient_checkpointing", "true",
    )  # fmt: skip
    assert small[name].size < sizes[1] / 2


def test_ppo_counts_minibatches_the_reward_model_and_the_cache(t5: str) -> None:
    arguments = ["--model.backbone", t5, "--trainer.callbacks", "[]", "--data.batch_size", "32"]
    items = make("ppo", *arguments, "--model.ppo.minibatch_size", "4")
    assert items["reward model"].size > 2**20
    larger = make("ppo", *arguments, "--model.ppo.minibatch_size", "8")
    name = "activations saved for the backward pass"
    assert larger[name].size == pytest.approx(2 * items[name].size, rel=0.02)
    cache = "keys and values of the decoder"
    rollouts = 32 * 4  # of each prompt 4
    assert items[cache].size == larger[cache].size == 2 * 4 * 2 * rollouts * (512 + 64) * 32


def test_the_peak_is_that_of_the_largest_phase() -> None:
    items = [
        plan.Item("a", 10), plan.Item("b", 5, "x"), plan.Item("c", 3, "y"), plan.Item("d", 4, "y"),
    ]  # fmt: skip
    assert plan.find_peak(items) == ("y", 17)


def test_what_has_no_plan_is_refused() -> None:
    with pytest.raises(AlignsumError, match="RewardModel has no plan"):
        make("reward")


@pytest.mark.slow  # other processes of a parallel run change the peak
def test_the_plan_is_near_the_measured_peak(tmp_path: Path) -> None:
    sizes = ["--data.max_source_length", "160", "--data.max_target_length", "20"]
    sizes += ["--data.batch_size", "64"]
    planned = plan.find_peak(list(make("lora", *sizes).values()))[1]
    command = [
        sys.executable, "train.py", "fit", "--config", "configs/lora.yaml", *MINI, *sizes,
        "--run_dir", str(tmp_path), "--trainer.limit_train_batches", "2",
        "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0",
        "--checkpoint.monitor", "null",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    measured = json.loads((tmp_path / "summary.json").read_text())["peak_memory_bytes"]
    assert planned == pytest.approx(measured, rel=0.2)
