"""What the notebooks in docs/notebooks share: two sizes, one way to run a module, two charts."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from transformers.utils import logging as transformers_logging

from callbacks import default_callbacks
from callbacks.closing import ClosingWords
from callbacks.loggers import RunCSVLogger
from callbacks.samples import SampleTexts
from callbacks.toxicity import ToxicityCallback
from common.exits import quieten_models
from common.run_folder import RunFolder
from reporting.charts import PALETTE

QUICK = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
"""Limits of each run if the environment variable NOTEBOOK_QUICK is set, as the tests do."""


@dataclass(frozen=True)
class Size:
    """A model, its data, and settings that suit it.

    Args:
        backbone: Hub id, folder or ``mini``.
        source: See ``data.source``.
        classifier: The hate-speech classifier.
        rows: Training rows.
        batch_size: Rows in a batch.
        epochs: Passes over the training rows.
        lr: Learning rate by the name of a method.
        layers: Layers that a LoRA adapts; None takes PEFT's default.
        precision: The Trainer's.
    """

    backbone: str
    source: str
    classifier: str
    rows: int
    batch_size: int
    epochs: int
    lr: Mapping[str, float]
    layers: tuple[str, ...] | None
    precision: Any


SIZES = {
    # the embedded miniature: two CPU cores, offline
    "mini": Size(
    "mini", "mini", "mini", 2000, 32, 2,
    {"full_ft": 1e-3, "lora": 5e-3, "soft_prompt": 0.1, "ppo": 3e-4}, ("q", "k", "v", "o"),
    "32-true",
),
    # FLAN-T5-base on DialogSum: a GPU, and downloads of 1.5 GB
    "flan-t5-base": Size(
    "google/flan-t5-base", "knkarthick/dialogsum",
    "facebook/roberta-hate-speech-dynabench-r4-target", 12460, 8, 1,
    {"full_ft": 5e-5, "lora": 1e-3, "soft_prompt": 0.3, "ppo": 1.4e-4}, None, "bf16-mixed",
    ),
}  # fmt: skip
"""The sizes by name."""


def prepare() -> Path:
    """Silence what only a terminal needs, and return the folder of the notebooks' runs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    quieten_models()
    transformers_logging.set_verbosity_error()
    return Path(os.environ.get("NOTEBOOK_RUNS", "runs/notebooks"))


def run(
    module: LightningModule, data: LightningDataModule, folder: Path, size: Size, **settings: Any
) -> RunFolder:
    """Train a module, test it, and return its run folder; ``epochs=0`` only tests.

    Args:
        module: Any module of ``lightning_modules``.
        data: Its data.
        folder: The run folder; an earlier run in it is replaced.
        size: The precision, the epochs and the classifier of the scores.
        **settings: Further arguments of ``Trainer``.
    """
    seed_everything(42, verbose=False)
    RunFolder(folder).clear()
    epochs = settings.pop("epochs", size.epochs)
    limits = QUICK if os.environ.get("NOTEBOOK_QUICK") else {}
    own = [ToxicityCallback(size.classifier), SampleTexts(0)]
    settings = {"enable_model_summary": False, "log_every_n_steps": 5, **settings, **limits}
    callbacks = default_callbacks(own, progress_bar=False)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=max(epochs, 1),
        precision=size.precision,
        use_distributed_sampler=False,  # the datamodule shards batches itself
        enable_progress_bar=False,
        logger=RunCSVLogger(str(folder)),
        callbacks=[each for each in callbacks if not isinstance(each, ClosingWords)],
        **settings,
    )
    if epochs:
        trainer.fit(module, data)
    trainer.test(module, data, ckpt_path="last" if epochs else None, verbose=False)
    scores = read_scores(folder)
    shown = f"ROUGE-1 {scores['rouge1'][0]:.1f}, toxicity {scores['toxicity'][0]:.1f}"
    sys.stdout.write(f"{folder.name}: {shown}\n")
    return RunFolder(folder)


def read_scores(folder: str | Path, names: Sequence[str] = ("rouge1", "toxicity")) -> Any:
    """Return value, low and high of test metrics, times 100, by name."""
    metrics = RunFolder(folder).read_summary()["metrics"]
    return {
        name: [100 * (metrics[f"test/{name}"][key] or 0) for key in ("value", "low", "high")]
        for name in names
    }


def plot_scores(folders: Sequence[RunFolder]) -> None:
    """Draw ROUGE-1 and toxicity of runs with 95 % intervals over the test dialogues."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.6 + 0.45 * len(folders)), sharey=True)
    titles = {"rouge1": "ROUGE-1, x 100", "toxicity": "toxicity, x 100 (lower is better)"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for row, folder in enumerate(folders):
            value, low, high = read_scores(folder.path)[name]
            axes.plot([low, high], [row, row], color=PALETTE[row % 5], linewidth=2, alpha=0.5)
            axes.plot(value, row, "o", color=PALETTE[row % 5])
        axes.set(title=title, xlim=(0, None), ylim=(len(folders) - 0.5, -0.5))
        axes.set_yticks(range(len(folders)), [folder.path.name for folder in folders])
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    plt.show()


def plot_curves(folder: RunFolder, metrics: Mapping[str, str]) -> None:
    """Draw logged metrics, a panel each.

    Args:
        folder: The run.
        metrics: Names in metrics.csv, with the titles of the panels.
    """
    rows = folder.read_metrics_csv()
    figure, panels = plt.subplots(1, len(metrics), figsize=(4.5 * len(metrics), 2.6), squeeze=False)
    for axes, (name, title) in zip(panels[0], metrics.items(), strict=True):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*points, strict=True), color=PALETTE[0])
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    plt.show()
