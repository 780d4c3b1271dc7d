import os

# Before any Hugging Face import: no test may wait for a hub, or find something there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning  # noqa: F401 (first: see train.py)  # isort: skip
import tests.typechecking  # noqa: F401 (before the package)  # isort: skip
import pytest
import torch

from lightning_modules import LoRA, SoftPrompt
from tests.batches import loader, make_batch, make_trainer
from tests.models import save_roberta, save_t5
from tests.rows import make_rows, write_rows

CONFIGS = Path(__file__).parent.parent / "configs"

Fit = Callable[..., None]

RANK_VARIABLES = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)  # fmt: skip

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


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    """What one test's ranks met by is nothing that the next one's could use: its port is taken."""
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def fit_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_rows(folder, train=make_rows(22), validation=make_rows(6))


@pytest.fixture
def fit_arguments(t5: str, fit_data: Path) -> Callable[..., list[str]]:
    """The arguments of a fit of two epochs of six steps, dropout on."""

    def arguments(method: str, folder: Path, *more: str) -> list[str]:
        return [
            "fit", "--config", str(CONFIGS / f"{method}.yaml"), "--model.backbone", t5,
            "--model.optimizer.lr", "0.01", "--model.decoding.max_new_tokens", "3",
            "--data.source", str(fit_data), "--data.batch_size", "4", "--trainer.max_epochs", "2",
            "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
            "--trainer.log_every_n_steps", "1", "--toxicity.model", "null",
            "--run_dir", str(folder), *more,
        ]  # fmt: skip

    return arguments


@pytest.fixture
def fit(fit_arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fit so; nothing is drawn, for that has no part in this."""
    import train  # here: most tests do without

    monkeypatch.setattr("callbacks.plots.draw_run", lambda folder: None)
    return lambda method, folder, *more: train.main(fit_arguments(method, folder, *more))


def adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


@pytest.fixture(scope="session")
def trained_adapter(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a LoRA that no longer is the bare backbone."""
    folder = tmp_path_factory.mktemp("lora")
    module = LoRA(backbone=t5, r=4, alpha=8, optimizer=adamw(0.05))
    make_trainer(folder, max_epochs=3).fit(module, loader(make_batch(t5)))
    module.export(folder / "export")
    return str(folder / "export")


@pytest.fixture(scope="session")
def trained_soft_prompt(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a soft prompt that was trained."""
    folder = tmp_path_factory.mktemp("soft")
    module = SoftPrompt(backbone=t5, virtual_tokens=5, optimizer=adamw(0.5))
    make_trainer(folder, max_epochs=3).fit(module, loader(make_batch(t5)))
    module.export(folder / "export")
    return str(folder / "export")
