"""Batches and Trainers for tests of modules, without a datamodule."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from common.hub import load_tokenizer
from datamodules.batching import Batch, Collator, Example

TEXTS = [
    "#Person1#: Hello, Ann. Are you well?",
    "#Person2#: No.",
    "#Person1#: The train leaves at six, so hurry up please!",
    "#Person2#: I lost my umbrella on the bus.",
    "#Person1#: Tea?",
    "#Person2#: Yes, with milk.",
]


def make_batch(backbone: str, rows: int = 6) -> Batch:
    tokenizer = load_tokenizer(backbone)
    examples = []
    for index in range(rows):
        text = TEXTS[index % len(TEXTS)]
        tokens = tokenizer([text, text[10:30]], return_tensors="np")["input_ids"]
        examples.append(Example(index, f"row_{index}", text, [text[10:30]], *tokens))
    return Collator(tokenizer.pad_token_id)(examples)


def loader(*batches: Batch) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def make_trainer(folder: Path, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "precision": "32-true",
    }
    return L.Trainer(**(defaults | settings))


def settle(module: L.LightningModule) -> Any:
    """Load what a module loads when a Trainer starts."""
    torch.manual_seed(0)
    module.configure_model()
    return module
