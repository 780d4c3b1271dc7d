"""Write the rollouts of PPO as JSON lines, for people and for the report's token view."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from callbacks.kl import ppo_step
from common.run_folder import RolloutFiles, write_lines
from lightning_modules import PPOPolicy


class RolloutWriter(Callback):
    """Write batches of rollouts to ``rollouts/`` in the run folder, one file per batch and rank.

    A line is one rollout: batch, id, tokens, text, score, terms, and per token log-probabilities,
    values, rewards and advantages. A resumed run replaces the batches after its checkpoint.

    Args:
        every: Write every n-th batch.

    Raises:
        ValueError: If ``every`` is below 1.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"RolloutWriter: every must be 1 or more, got {every}")
        self.every = every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module that samples no rollouts."""
        if not isinstance(pl_module, PPOPolicy):
            raise ValueError(
                f"RolloutWriter: {type(pl_module).__name__} samples no rollouts; drop the callback"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Remove what an interrupted run wrote after the checkpoint; each rank takes its share."""
        for path, batch, rank in RolloutFiles(trainer.default_root_dir).files():
            if batch >= pl_module.batches_done and rank % trainer.world_size == trainer.global_rank:
                path.unlink()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a batch after its update, unless it was skipped."""
        step = ppo_step(outputs)
        if step is None or step.batch % self.every:
            return
        prompts = pl_module.backbone.decode(step.rollout.prompts.input_ids)
        vocabulary = pl_module.tokenizer.convert_ids_to_tokens
        path = RolloutFiles(trainer.default_root_dir).rows(step.batch, trainer.global_rank)
        write_lines(path, step.to_records(batch["ids"], prompts, vocabulary))
