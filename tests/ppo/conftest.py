"""Adapters that were trained, for policies to start from."""

from typing import Any

import pytest
import torch

from lightning_modules import LoRA, SoftPrompt
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer

DECODING = Decoding(max_new_tokens=10)


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


@pytest.fixture(scope="session")
def trained_adapter(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a LoRA that no longer is the bare backbone."""
    folder = tmp_path_factory.mktemp("lora")
    module = LoRA(backbone=t5, r=4, alpha=8, decoding=DECODING, optimizer=adamw(0.05))
    make_trainer(folder, max_epochs=3).fit(module, loader(make_batch(t5)))
    module.export(folder / "export")
    return str(folder / "export")


@pytest.fixture(scope="session")
def trained_soft_prompt(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a soft prompt that was trained."""
    folder = tmp_path_factory.mktemp("soft")
    module = SoftPrompt(backbone=t5, virtual_tokens=5, decoding=DECODING, optimizer=adamw(0.5))
    make_trainer(folder, max_epochs=3).fit(module, loader(make_batch(t5)))
    module.export(folder / "export")
    return str(folder / "export")
