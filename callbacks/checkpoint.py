"""best.ckpt and last.ckpt: what a run can be tested with, and what it can go on from."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoint_files import CheckpointError, add_name, newest_first
from callbacks.falls import Falls, is_validation_of_fit
from common.exits import StoppedBySignal
from common.run_folder import PARTIAL
from lightning_modules.sharding import are_finite

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose files are what a run can go on from, exactly, wherever it broke off.

    ``best.ckpt`` is written when a validation was the best so far, ``last.ckpt`` after every
    validation and every epoch (of every ``every_n_epochs``), every ``every_n_train_steps`` or
    ``train_time_interval``, and when the run ends or breaks off. Otherwise than Lightning's own it

    - writes ``last.ckpt`` whether or not the validation was the best;
    - writes after a step only when the step's metrics are logged and its validation is done;
    - leaves the best checkpoint alone when the run breaks off: since that has a fixed name, the
      best weights would be lost to later ones;
    - keeps the best score when the run folder was moved, or how often it is written was changed;
    - writes no weights that are not finite;
    - can keep the checkpoints that ``last.ckpt`` replaces, as ``step00001200.ckpt``;
    - chooses under a constraint where ``falls`` gives one: the best of the validations in which no
      metric has fallen too far, for an objective that can be bought with another one's loss.

    Args:
        dirpath: Where the files go.
        keep_last: How many checkpoints to go on from are kept, ``last.ckpt`` being the newest.
        falls: For each metric of the validation, higher being better, how far it may fall below its
            value in the first validation, as in :class:`PPOWatch`. The first validation itself
            always qualifies. Needs ``monitor``.
        **kwargs: See ``ModelCheckpoint``; there is one best checkpoint, or none by ``save_top_k``
            0.

    Raises:
        ValueError: If a number is out of range, or ``falls`` has nothing to constrain.
    """

    _training = False
    _step_of_last: int | None = None
    """Of the last.ckpt on the disk, where it is one of this run as it stands."""

    def __init__(
        self,
        dirpath: str | Path | None = None,
        keep_last: int = 1,
        falls: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dirpath, **kwargs)
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be 1 or more, got {keep_last}")
        if self.save_top_k not in (0, 1):
            raise ValueError(
                f"checkpoint.save_top_k must be 1 (best.ckpt) or 0 (none), got {self.save_top_k}; "
                "to keep several of the last ones set checkpoint.keep_last"
            )
        self.keep_last = keep_last
        self._falls = Falls("checkpoint", falls or {})
        if falls and self.monitor is None:
            raise ValueError(
                "checkpoint.falls constrains what is best, and nothing is monitored; set "
                "checkpoint.monitor and checkpoint.mode (val/toxicity and min, for example)"
            )

    @property
    def state_key(self) -> str:
        """What the best score is of; how often it is looked at does not matter."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Clear away what a write that was killed has left."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and self.dirpath:
            for partial in Path(self.dirpath).glob(f".*{PARTIAL}"):
                log.info("Removed %s, which was not complete", partial)
                partial.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Give the scores, and what metrics may fall from."""
        falls = {"falls": self._falls.limits, "first_validation": self._falls.first}
        return super().state_dict() | falls

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores up again, in the folder where the files are now.

        Raises:
            ValueError: If the best so far was chosen under another constraint.
        """
        before = state_dict.get("falls", {})
        if before != self._falls.limits:
            raise ValueError(
                f"checkpoint.falls was {before} when this run began and is {self._falls.limits} "
                "now; what was best until here was chosen by the former: go on with that, or "
                "start another run"
            )
        self._falls.first = dict(state_dict.get("first_validation", {}))
        then, now = state_dict["dirpath"], str(self.dirpath)

        def move(path: str) -> str:
            moved = path.replace(str(then), now, 1)
            return moved if Path(moved).is_file() else path

        if then != now and Path(move(state_dict["best_model_path"])).parent == Path(now):
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_k_models": {move(k): v for k, v in state_dict["best_k_models"].items()},
                **{
                    name: move(state_dict[name])
                    for name in ("best_model_path", "kth_best_model_path", "last_model_path")
                },
            }
        super().load_state_dict(state_dict)

    # When it is time ----------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; what a run was resumed from is not written again."""
        super().on_train_start(trainer, pl_module)
        self._training = True
        if trainer.ckpt_path is not None:
            self._last_global_step_saved = trainer.global_step
            if Path(trainer.ckpt_path) == Path(str(self.dirpath), "last.ckpt"):
                self._step_of_last = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save after so many steps or so much time, before the next step begins."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer):
            self._save(trainer, best=self.monitor is None)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Save nothing: the step's metrics are not logged yet, and its validation is to come."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation, unless its epoch ends with it.

        Raises:
            ValueError: If the validation did not log a metric of ``falls``.
        """
        if is_validation_of_fit(trainer):
            self._falls.look(trainer.callback_metrics)
        if self._training and not self._should_save_on_train_epoch_end(trainer):
            self._save_in_turn(trainer, best=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after an epoch."""
        if self._should_save_on_train_epoch_end(trainer):
            self._save_in_turn(trainer, best=True)
        elif self._last_global_step_saved != trainer.global_step:
            self._save_in_turn(trainer, best=self.monitor is None)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the training ended with."""
        self._training = False
        if self._last_global_step_saved != trainer.global_step:
            self._save(trainer, best=self.monitor is None)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep what there is when an error or a signal ends the fit after its first step."""
        if not (self._training and self._should_save_on_exception(trainer)):
            return
        if problem := self._find_reason_not_to_save(trainer, pl_module, exception):
            log.error("last.ckpt is left as it was: %s", problem)
            return
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.completed < progress.processed:
            # Lightning would have logged the step's metrics next.
            trainer._logger_connector.update_train_step_metrics()
        try:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        except CheckpointError as error:
            log.error("%s", error)

    def _find_reason_not_to_save(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> str | None:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if isinstance(exception, CheckpointError):
            return "it could not be written"
        if getattr(pl_module, "half_updated", False) and progress.processed < progress.ready:
            return "the run broke off while a batch was changing the weights"
        together = (StoppedBySignal, FloatingPointError)
        if trainer.world_size > 1 and not isinstance(exception, together):
            return "one rank alone broke off, and all have to take part"
        if not has_finite_weights(pl_module):
            return "the weights at hand are not finite"
        return None

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether the steps or the time to the next checkpoint have passed."""
        steps, saved = trainer.global_step, self._last_global_step_saved
        if steps == saved:
            return False
        every, interval = self._every_n_train_steps, self._train_time_interval
        if interval is None:
            return every > 0 and steps // every > saved // every
        now = time.monotonic()
        passed = now - (self._last_time_checked or 0.0) >= interval.total_seconds()
        if passed := trainer.strategy.broadcast(passed):
            self._last_time_checked = now
        return passed

    def _save_in_turn(self, trainer: L.Trainer, best: bool) -> None:
        every = self._every_n_epochs or 1  # 0 where the steps or the time were given instead
        if (trainer.current_epoch + 1) % every == 0:
            self._save(trainer, best)

    def _save(self, trainer: L.Trainer, best: bool) -> None:
        if not has_finite_weights(trainer.lightning_module):
            raise FloatingPointError(
                f"the weights are not finite after step {trainer.global_step}; no checkpoint is "
                "written of them, the last one is untouched. Try a lower learning rate"
            )
        candidates = self._monitor_candidates(trainer)
        fallen = self._falls.find_fallen() if best else []
        if fallen:
            log.info("This is not to be the best checkpoint: %s", ", ".join(fallen))
        elif best:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Any]) -> None:
        if trainer.is_global_zero and self.keep_last > 1 and self.dirpath:
            self._keep_earlier(Path(self.dirpath), trainer.global_step)
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._step_of_last = trainer.global_step

    def _keep_earlier(self, folder: Path, step: int) -> None:
        """Give last.ckpt, about to be replaced, a second name; drop the oldest that have one."""
        if self._step_of_last not in (None, step):
            add_name(folder / "last.ckpt", folder / f"step{self._step_of_last:08d}.ckpt")
        for path in newest_first(folder.glob("step*.ckpt"))[self.keep_last - 1 :]:
            path.unlink()


def has_finite_weights(pl_module: L.LightningModule) -> bool:
    """Whether all trained weights are finite."""
    return are_finite(p for p in pl_module.parameters() if p.requires_grad)
