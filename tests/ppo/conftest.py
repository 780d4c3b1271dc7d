"""Adapters that were trained, for policies to start from, and a tiny run by the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import LoRA, SoftPrompt
from lightning_modules.summarization import Decoding
from tests.batches import loader, make_batch, make_trainer
from tests.rows import write_rows

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


@pytest.fixture
def tiny_ppo(t5: str, roberta: str, tmp_path: Path) -> list[str]:
    """The arguments of a run of two epochs of five batches, on models and data of nothing."""
    rows = [
        {"fname": f"row_{i}", "dialogue": f"#Person1#: {i} apples" + " please" * (i % 3),
         "summary": "They talk.", "topic": "x"}
        for i in range(20)
    ]  # fmt: skip
    write_rows(tmp_path, train=rows, validation=rows, test=rows)
    return [
        "--config", "configs/ppo.yaml", "--model.backbone", t5, "--model.reward_model", roberta,
        "--toxicity.model", "null", "--data.source", str(tmp_path), "--data.batch_size", "4",
        "--data.min_dialogue_chars", "0", "--model.ppo.max_new_tokens", "6",
        "--model.ppo.epochs", "2", "--model.ppo.kl_target", "0.5", "--model.ppo.kl_horizon", "50",
        "--model.ppo.normalise_scores", "true", "--model.schedule", "linear",
        "--model.optimizer.lr", "0.01", "--model.decoding.max_new_tokens", "6",
        "--trainer.max_epochs", "2", "--trainer.precision", "32-true",
        "--trainer.accelerator", "cpu", "--checkpoint.every_n_train_steps", "1",
    ]  # fmt: skip
