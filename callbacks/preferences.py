"""How often a reward model puts a pair of completions in the order of its annotators."""

from itertools import combinations
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from callbacks.text_metric import gather_rows
from metrics.intervals import bootstrap_mean
from run_folder import RunFolder


class PreferenceAccuracy(Callback):
    """Log ``val/accuracy`` and ``test/accuracy``; write the test's rankings with their rewards.

    The accuracy of a ranking is the share of its pairs that the rewards order as the ranks do; the
    mean is over rankings, which are what was drawn independently, and so is the interval.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the batch's rankings."""
        self.rows += make_rows(batch, outputs)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the batch's rankings."""
        self.rows += make_rows(batch, outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean accuracy."""
        accuracy = bootstrap_mean([row["accuracy"] for row in self._take()])
        pl_module.log("val/accuracy", accuracy.value, sync_dist=True, prog_bar=True)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean accuracy, and record it and the rankings in the run folder."""
        rows = self._take()
        accuracy = bootstrap_mean([row["accuracy"] for row in rows])
        pl_module.log("test/accuracy", accuracy.value, sync_dist=True)
        if trainer.is_global_zero:
            folder = RunFolder(trainer.default_root_dir)
            folder.record_metrics({"test/accuracy": accuracy})
            folder.merge_predictions([{k: row[k] for k in row if k != "index"} for row in rows])

    def _take(self) -> list[dict[str, Any]]:
        rows, self.rows = gather_rows(self.rows), []
        return rows


def make_rows(batch: Any, outputs: Any) -> list[dict[str, Any]]:
    """Pair rankings with the rewards that they got; ties in the ranks are no pair."""
    rows = []
    for place, index in enumerate(batch["index"].tolist()):
        ranks, rewards = batch["ranks"][place], outputs["rewards"][place]
        pairs = [(a, b) for a, b in combinations(range(len(ranks)), 2) if ranks[a] != ranks[b]]
        # A tie in the rewards is half right: it is what a coin would get.
        right = sum(
            0.5 if rewards[a] == rewards[b] else (ranks[a] < ranks[b]) == (rewards[a] > rewards[b])
            for a, b in pairs
        )
        rows.append(
            {
                "index": index,
                "id": batch["ids"][place],
                "dialogue": batch["dialogues"][place],
                "completions": batch["completions"][place],
                "ranks": ranks,
                "rewards": rewards,
                "accuracy": right / len(pairs),
            }
        )
    return rows
