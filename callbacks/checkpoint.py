"""best.ckpt and last.ckpt: what a run can be tested with, and what it can go on from."""

import logging
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.falls import Falls, is_validation_of_fit
from run_folder import PARTIAL, replacing

log = logging.getLogger(__name__)


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all: what was there before stays until it is complete.

    Lightning's own writes to the system's folder for temporary files and moves it from there, which
    between two disks is a copy that can break off.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: If it cannot be written, with the cause.
        """
        try:
            with replacing(Path(path)) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            raise CheckpointError(
                f"the checkpoint {path} could not be written ({error}); an earlier one of this "
                "name is untouched. Make room on the disk, then go on with --resume auto"
            ) from error


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
    - chooses under a constraint where ``falls`` gives one: the best of the validations in which no
      metric has fallen too far, for an objective that can be bought with another one's loss.

    Args:
        args: As for ModelCheckpoint.
        falls: For each metric of the validation, higher being better, how far it may fall below its
            value in the first validation, as in :class:`PPOWatch`. The first validation itself
            always qualifies. Needs ``monitor``.
        kwargs: As for ModelCheckpoint.

    Raises:
        ValueError: If a fall is below 0, or nothing is monitored.
    """

    _training = False
    _stepping = False

    def __init__(self, *args: Any, falls: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save after so many steps or so much time, before the next step begins."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer):
            self._save(trainer, best=self.monitor is None)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Save nothing: the step's metrics are not logged yet, and its validation is to come."""
        self._stepping = False

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

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Note that weights begin to change."""
        self._stepping = pl_module.automatic_optimization

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
        if self._stepping and progress.processed < progress.ready:
            return "the run broke off within an optimizer step"
        together = (SIGTERMException, FloatingPointError, KeyboardInterrupt)
        if trainer.world_size > 1 and not isinstance(exception, together):
            return "one rank alone broke off, and all have to take part"
        if not all(p.isfinite().all() for p in pl_module.parameters() if p.requires_grad):
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
        candidates = self._monitor_candidates(trainer)
        fallen = self._falls.find_fallen() if best else []
        if fallen:
            log.info("This is not to be the best checkpoint: %s", ", ".join(fallen))
        elif best:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)


# Which checkpoint to go on from -----------------------------------------------------------------


def find_damage(path: Path) -> str | None:
    """Say why a checkpoint cannot be read, or return None where every byte of it is as written."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return f"{path} cannot be read ({error})"
    return f"{path} is damaged (in its part {part})" if part else None


def choose_checkpoint(wanted: str, folder: Path) -> tuple[Path | None, list[str]]:
    """Choose what a run goes on from.

    Args:
        wanted: A path, or ``auto``: last.ckpt, or else the newest other one that can be read.
        folder: Where the run's checkpoints lie.

    Returns:
        The checkpoint, None where there is none, and what is wrong with those that were passed by.
    """
    candidates = [Path(wanted)]
    if wanted == "auto":
        last = folder / "last.ckpt"
        others = (path for path in folder.glob("*.ckpt") if path != last)
        candidates = [last, *sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)]
    problems: list[str] = []
    for path in candidates:
        problem = find_damage(path) if path.is_file() else f"there is no checkpoint {path}"
        if problem is None:
            return path, problems
        problems.append(problem)
    return None, problems
