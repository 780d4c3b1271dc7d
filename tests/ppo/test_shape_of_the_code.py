"""Short paths: few classes above PPO, few files between a prompt and its scored tokens."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from lightning_modules import PPOPolicy, PreferenceModule
from lightning_modules.backbones import Prompts, Sampling, load_backbone, set_dropout
from lightning_modules.policies.adapters import attach_adapter, reference_backbone
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.ppo.kl import per_sequence
from lightning_modules.ppo.rollout import roll_out
from lightning_modules.ppo.value_head import ValueHead
from tests.batches import make_batch
from tests.models import wrap

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("method", [PPOPolicy, PreferenceModule])
def test_at_most_three_classes_stand_before_lightning(method: type) -> None:
    own = [c for c in method.__mro__ if c.__module__.startswith("lightning_modules")]
    assert len(own) <= 3


def test_sampling_and_scoring_one_token_passes_few_files(t5: str) -> None:
    model = attach_adapter(load_backbone(t5), LoRASettings(r=2, alpha=2).config()).train()
    set_dropout(model, 0.0)
    batch, backbone, files = make_batch(t5), wrap(model), set()

    def note(frame: Any, event: str, argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in file.parents and ".venv" not in file.parts:
            files.add(str(file.relative_to(ROOT)))

    prompts, head = Prompts(batch["input_ids"], batch["attention_mask"]), ValueHead(32)
    opened = partial(reference_backbone, backbone)
    sys.setprofile(note)
    try:
        drawn = roll_out(backbone, opened, prompts, Sampling(1), head, reuse_sampler=False)
    finally:
        sys.setprofile(None)
    assert drawn.responses.shape == (6, 1) and torch.isfinite(drawn.logprobs).all()
    files = {file for file in files if not file.startswith("tests/")}
    assert len(files) <= 8, sorted(files)


def test_shapes_in_signatures_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        per_sequence(torch.zeros(2, 3), torch.ones(2, 4).bool())
