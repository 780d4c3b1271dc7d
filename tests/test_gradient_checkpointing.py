"""Gradient checkpointing: a second forward pass and the same gradients."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.roberta.modeling_roberta import RobertaOutput
from transformers.models.t5.modeling_t5 import T5LayerFF

from lightning_modules import RewardModel
from tests.batches import loader, make_batch, make_trainer, settle
from tests.test_adapters import shake
from tests.test_modules import ADAPTERS, METHODS

ALL = METHODS | ADAPTERS | {
    "decoder": lambda t5, **kw: METHODS["lora"](t5, target_modules=r".*decoder.*\.(q|v)$", **kw)
}  # fmt: skip


def count_passes(module: Any, kind: type) -> Counter[str]:
    """Count the forward passes of every layer of a kind, from now on; the second may end early."""
    passes: Counter[str] = Counter()
    for name, layer in module.named_modules():
        if isinstance(layer, kind):
            layer.register_forward_pre_hook(lambda *_, name=name: passes.update([name]))
    return passes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_the_same(name: str, dropout: float, t5: str) -> None:
    """With dropout too: the second pass draws the same random numbers."""
    batch = make_batch(t5)
    found = []
    for setting in (False, True):
        module = settle(ALL[name](t5, dropout=dropout, gradient_checkpointing=setting))
        # A fresh LoRA has B = 0, and so no gradient for A.
        shake(module.model)
        passes = count_passes(module, T5LayerFF)
        torch.manual_seed(1)
        loss, _ = module.sum_losses(batch)
        assert set(passes.values()) == {1}
        loss.backward()
        # All four blocks are computed again, but those below all that is trained.
        twice = {layer for layer, count in passes.items() if count == 2}
        expected = 0 if not setting else 2 if name == "decoder" else 4
        assert len(twice) == expected
        found.append({n: p.grad for n, p in module.named_parameters() if p.requires_grad})
    plain, checkpointed = found
    assert all((gradient != 0).any() for gradient in plain.values())
    for n in plain:
        assert float((checkpointed[n] - plain[n]).norm()) <= 1e-6 * float(plain[n].norm()), n


@pytest.mark.parametrize("name", METHODS)
def test_it_engages_in_a_fit_and_not_in_evaluation(name: str, t5: str, tmp_path: Path) -> None:
    module = settle(METHODS[name](t5, gradient_checkpointing=True))
    passes = count_passes(module, T5LayerFF)
    batch = make_batch(t5)
    make_trainer(tmp_path).fit(module, loader(batch))
    assert set(passes.values()) == {2}
    plain = settle(METHODS[name](t5))
    plain.load_state_dict(module.state_dict())
    assert module.eval().generate(batch) == plain.eval().generate(batch)


def test_a_reward_model_can_too(roberta: str) -> None:
    module = settle(RewardModel(backbone=roberta, gradient_checkpointing=True))
    passes = count_passes(module, RobertaOutput)
    inputs = module.tokenizer(["A text.", "Another."], return_tensors="pt", padding=True)
    module.scores({"inputs": inputs}).sum().backward()
    assert set(passes.values()) == {2}
