"""Out of memory: what helps, said with the batch that did not fit; or smaller pieces at once."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules import PPOPolicy
from lightning_modules.out_of_memory import is_out_of_memory
from lightning_modules.pieces import PiecewiseModule

GENERAL = (
    "Less memory: a smaller --data.batch_size, --trainer.precision bf16-mixed, a LoRA in place of "
    "all weights. `python train.py fit ... --plan_memory` says what a fit needs"
)


class OutOfMemoryGuard(Callback):
    """Say what helps when memory runs out in a fit; on request, cut the batch in halves and go on.

    The halves are learnt from one after the other, within one optimizer step: same loss and
    gradients, but for dropout, which draws others for each cut. In PPO micro-batches are halved.
    The size that was found to fit is kept, in checkpoints too.

    Args:
        halve: Cut what does not fit; on one device only.
    """

    def __init__(self, halve: bool = False) -> None:
        self.halve = halve
        self._module: PiecewiseModule | None = None
        self._room: int | None = None
        self._at_hand = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the module.

        Raises:
            ValueError: If there are several ranks, or an engine of DeepSpeed's has the gradients.
        """
        if self.halve and trainer.world_size > 1:
            raise ValueError(
                "oom.halve: on several devices one alone cannot begin its step again, the others "
                "would be in the middle of theirs; set a smaller data.batch_size (with "
                "trainer.accumulate_grad_batches) or ppo.microbatch_size"
            )
        if isinstance(pl_module, PiecewiseModule):
            self._module = pl_module
            pl_module.halve_on_oom = self.halve

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up what was found to fit before a break."""
        if self.halve and self._module is not None:
            self._module.room = self._room

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what is at hand."""
        places = [f"{name} {list(batch[name].shape)}" for name in ("input_ids", "labels")
                  if name in batch]  # fmt: skip
        self._at_hand = f"{len(batch['ids'])} rows, {', '.join(places)}"

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Add to the error what was at hand and what helps."""
        if is_out_of_memory(exception) and self._at_hand:
            exception.add_note(
                f"It happened in epoch {trainer.current_epoch} at step {trainer.global_step}; the "
                f"batch has {self._at_hand}."
            )
            exception.add_note(self._advise(trainer, pl_module))

    def _advise(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        if isinstance(pl_module, PPOPolicy):
            rows = pl_module.microbatch_size or pl_module.ppo.minibatch_size
            cut = f"--model.ppo.microbatch_size {max(1, rows // 2)}"
        else:
            rows = getattr(getattr(trainer, "datamodule", None), "batch_size", 2)
            steps = 2 * trainer.accumulate_grad_batches
            cut = f"--data.batch_size {max(1, rows // 2)} --trainer.accumulate_grad_batches {steps}"
        return (
            f"Less memory and the same result: {cut}, or --oom.halve true, which cuts batches by "
            "itself where they do not fit; --model.gradient_checkpointing true, but in PPO. "
            f"{GENERAL}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Give what was found to fit."""
        room = self._module.room if self._module is not None else self._room
        return {} if room is None else {"room": room}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self._room = state_dict["room"]


def explain(error: BaseException) -> str:
    """Give the message of an out-of-memory error: what ran out, where, what helps."""
    first = str(error).partition("\n")[0]
    where = "" if isinstance(error, torch.OutOfMemoryError) else " (of the machine)"
    notes = getattr(error, "__notes__", None) or [GENERAL]
    cause = f": {first}" if first else ""
    return "\n".join([f"out of memory{where}{cause}", *notes])
