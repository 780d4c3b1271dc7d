"""Keep the rollouts of PPO on disk, to be read by people and made updates of again."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import move_data_to_device

from common.run_folder import RolloutFiles, write_lines, write_text
from lightning_modules import PPOPolicy
from lightning_modules.ppo.records import (
    Record,
    Recorded,
    describe,
    from_records,
    to_records,
)


class RolloutFolder(RolloutFiles):
    """Writes and reads the files of a run's ``rollouts/``."""

    def find_checkpoint(self, batch: int) -> Path | None:
        """Find the last checkpoint from before a batch or, failing that, before an earlier one."""
        numbers = [number for _, number, _ in self.files(".ckpt") if number <= batch]
        return self.checkpoint(max(numbers)) if numbers else None

    def describe(self, batch: int, rank: int = 0) -> Record:
        """Read what a batch has beside its rows.

        Raises:
            ValueError: There is no such batch, or the file is broken.
        """
        path = self.rows(batch, rank)
        if not path.is_file():
            there = ", ".join(map(str, self.batches())) or "none"
            raise ValueError(
                f"there is no batch {batch} of rank {rank} in {self.path}; batches there: {there}. "
                "Rollouts are kept with --config configs/overlays/rollouts.yaml"
            )
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if not isinstance(about, dict) or "ranks" not in about:
                raise ValueError("it does not describe a batch")
        except ValueError as error:
            raise ValueError(f"{path.with_suffix('.json')} is broken: {error}") from error
        return about

    def read(self, batch: int, rank: int, pad_id: int) -> Recorded:
        """Read a batch as it was learnt from.

        Args:
            batch: Its number.
            rank: Whose rows.
            pad_id: Fills prompts and responses up.

        Raises:
            ValueError: There is no such batch, or a file is broken.
        """
        about, path = self.describe(batch, rank), self.rows(batch, rank)
        try:
            with path.open(encoding="utf-8") as lines:
                records = [json.loads(line) for line in lines]
            if not records:
                raise ValueError("it is empty")
            return from_records(records, about, pad_id)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is broken, or the .json beside it: {error!r}") from error

    def drop_from(self, batch: int, rank: int, ranks: int) -> None:
        """Remove what a batch and later ones left; each rank of several takes its own share."""
        for path, number, whose in self.files():
            if number >= batch and whose % ranks == rank:
                path.unlink()


class RolloutWriter(Callback):
    """Write batches of rollouts to ``rollouts/`` in the run folder, each rank its own.

    The tensors of a batch are copied to the CPU once, after its update. A resumed run writes the
    batches after its checkpoint anew. ``python replay.py RUN --batch N`` makes the update of a
    batch again.

    Args:
        every: Write every so many batches.
        checkpoint_every: Before every so many batches write the state of the run too, from which
            this and the following batches can be replayed as long as all of them are written;
            None writes none. A checkpoint holds the trained weights and the optimizer's two
            moments of each: three times the size of what is trained.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, every: int = 1, checkpoint_every: int | None = None) -> None:
        for name, value in (("every", every), ("checkpoint_every", checkpoint_every)):
            if value is not None and value < 1:
                raise ValueError(f"RolloutWriter: {name} must be 1 or more, got {value}")
        self.every = every
        self.checkpoint_every = checkpoint_every
        self._learning_rates: list[float] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module that makes no rollouts."""
        if not isinstance(pl_module, PPOPolicy):
            raise ValueError(
                f"RolloutWriter: {type(pl_module).__name__} makes no rollouts; drop the callback"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Drop what an earlier run wrote after the checkpoint that this one goes on from."""
        batch = pl_module.batches_done
        folder = RolloutFolder(trainer.default_root_dir)
        folder.drop_from(batch, trainer.global_rank, trainer.world_size)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state before the update."""
        self._learning_rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        number, every = pl_module.batches_done, self.checkpoint_every
        if every is not None and number % every == 0:
            trainer.save_checkpoint(RolloutFolder(trainer.default_root_dir).checkpoint(number))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a batch that was learnt from; the .jsonl last: where it is, the .json is too."""
        if not outputs or outputs["batch"] % self.every:
            return
        experience = outputs["experience"]
        bare = experience._replace(rollout=experience.rollout._replace(encoded=None))
        step = move_data_to_device(dict(outputs) | {"experience": bare}, torch.device("cpu"))
        prompts = pl_module.decode(step["experience"].rollout.prompts.input_ids)
        path = RolloutFolder(trainer.default_root_dir).rows(step["batch"], trainer.global_rank)
        about = describe(step, trainer.global_rank, trainer.world_size, self._learning_rates)
        write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
        vocabulary = pl_module.tokenizer.convert_ids_to_tokens
        write_lines(path, to_records(step, batch["ids"], prompts, vocabulary))
