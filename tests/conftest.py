import os

# Before any Hugging Face import: no test may wait for a hub, or find something there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import lightning  # noqa: F401 (first: see train.py)  # isort: skip
import pytest
import torch

from tests.models import save_roberta, save_t5

# One thread: tensors here are too small to gain from two, and CI has only two cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_roberta(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenised data of tests never lands in the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    return cache
