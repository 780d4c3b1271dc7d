"""Resuming exactly: a checkpoint says where the run stood between two optimizer steps."""

import os
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.loggers import RunCSVLogger
from common.run_folder import RunFolder


@dataclass(frozen=True)
class Place:
    """A place of a run between two optimizer steps.

    Args:
        epoch: Epochs that are complete.
        batches: Batches of the next one that were learnt from.
        begun: Whether that epoch has begun; otherwise its start hooks are still to come.
        validate: Whether a validation comes before anything else.
    """

    epoch: int
    batches: int
    begun: bool = True
    validate: bool = False


def find_place(trainer: L.Trainer) -> Place:
    """Say where a run stands, while it is neither in an optimizer step nor in a validation."""
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
    if not epochs.started:
        return Place(0, 0, begun=False)
    whole = batches.processed >= trainer.num_training_batches
    if whole and epochs.processed == epochs.started:
        return Place(epochs.started, 0, begun=False)
    # Lightning counts a batch as completed when its metrics are logged; a validation comes later.
    validation_due = batches.processed > 0 and loop.epoch_loop._should_check_val_fx(
        loop._data_fetcher
    )
    unfinished = batches.completed < batches.processed
    if whole and not validation_due:
        # Nothing but the end hooks is left of the epoch, and Lightning would fetch a batch first.
        return Place(epochs.started, 0, begun=False)
    return Place(epochs.started - 1, batches.processed, validate=validation_due and unfinished)


def write_place(fit_loop: dict[str, Any], place: Place) -> None:
    """Set the state of Lightning's fit loop to the one from which it goes on at a place.

    Lightning saves its counters as they stand, tells from their differences where the run was, and
    is wrong or inexact in several of the cases: a validation that broke off goes on with its first
    batches taken for its later ones, one that was due is left out, an epoch's end under
    ``max_steps`` counts twice. The states written here are those it gets right.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``; changed in place.
        place: Where the run is to go on.
    """
    epochs = _counts(place.epoch) | {"ready": place.epoch + 1}
    if place.begun:
        epochs["started"] = place.epoch + 1
    fit_loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}

    batches = fit_loop["epoch_loop.batch_progress"]
    total = batches["total"]["processed"]
    if place.begun:
        total += place.batches - batches["current"]["processed"]
    batches |= {"total": _counts(total), "current": _counts(place.batches)}
    batches["is_last_batch"] = batches["is_last_batch"] and place.batches > 0

    # Lightning begins with the validation of which a batch is begun and not done.
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for name in ("total", "current"):
        done = _counts(validation[name]["completed"])
        validation[name] = _counts(0) | {"ready": 1, "started": 1} if place.validate else done

    for name, progress in fit_loop.items():
        if name.endswith(("optim_progress", "optim_step_progress", "scheduler_progress")):
            _settle(progress)


def _counts(number: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)


def _settle(progress: dict[str, Any]) -> None:
    """Count no optimizer or scheduler step as begun that is not completed."""
    if "completed" in progress:
        progress.update(dict.fromkeys(progress, progress["completed"]))
    else:
        for part in progress.values():
            _settle(part)


@dataclass
class Mark:
    """What a checkpoint has to say of a run, apart from its weights and its optimizer."""

    place: Place
    data: dict[str, Any]
    """State of the datamodule, under its name."""

    files: dict[str, int]
    """Lengths of the run folder's growing files."""

    callbacks: dict[str, Any] | None = None
    """States of the callbacks; None for those at hand."""


class ExactResume(L.Callback):
    """Let a resumed fit go on exactly where the one before it stood, whenever that broke off.

    A checkpoint that is written in the middle of an optimizer step or of a validation says that the
    run stands before it, so the resumed run does it again from its beginning: the weights are still
    those, and the random numbers depend on the place alone. Of ``metrics.csv`` and
    ``samples.jsonl`` a resumed run drops what was written after that place.

    It has to stand before other callbacks, which may log when a batch begins.
    """

    KEY = "run_folder"

    def __init__(self) -> None:
        self._mark: Mark | None = None
        self._resumed = False

    # Where a checkpoint would go back to --------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Mark the beginning of an optimizer step."""
        self._restore_step_count(trainer)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._mark = make_mark(trainer, Place(trainer.current_epoch, batch_idx))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Forget it behind the step; of a batch of several steps, behind them all.

        While the weights change no checkpoint is written: see ``SteppingModule.half_updated``.
        """
        if not (pl_module.automatic_optimization and trainer.fit_loop._should_accumulate()):
            self._mark = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the beginning of a validation, unless it lies within an optimizer step."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._restore_step_count(trainer, validating=True)
        if self._mark is None:
            place = replace(find_place(trainer), validate=True)
            self._mark = make_mark(trainer, place)
        self._mark.callbacks = self._mark.callbacks or take_states(trainer)

    # Checkpoints --------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say where the run stands: what is saved behind a validation has it behind it."""
        mark = self._mark
        if mark is None or (mark.place.validate and not trainer.interrupted):
            mark = make_mark(trainer, find_place(trainer))
        write_place(checkpoint["loops"]["fit_loop"], mark.place)
        checkpoint[self.KEY] = mark.files
        if mark.callbacks is not None:
            checkpoint["callbacks"] = mark.callbacks
        if mark.data:
            checkpoint |= mark.data

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drop what the run folder got later; a test from a checkpoint drops nothing."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed = True
            if trainer.is_global_zero and self.KEY in checkpoint:
                shorten_files(trainer, checkpoint[self.KEY])

    def _restore_step_count(self, trainer: L.Trainer, validating: bool = False) -> None:
        """Give rows of ``metrics.csv`` the step that they would have had without the break."""
        if not self._resumed:
            return
        self._resumed = False
        loop: Any = trainer.fit_loop
        steps = trainer.global_step - validating
        if not trainer.lightning_module.automatic_optimization:
            steps = loop.total_batch_idx
        loop.epoch_loop._batches_that_stepped = steps


def make_mark(trainer: Any, place: Place) -> Mark:
    """Take down what is to be said of the run at a place."""
    data = trainer.datamodule
    state = {} if data is None else {type(data).__qualname__: data.state_dict()}
    return Mark(place, state, measure_files(trainer))


def take_states(trainer: Any) -> dict[str, Any]:
    """Copy the states of all callbacks, as a checkpoint has them."""
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
    return deepcopy({key: state for key, state in states.items() if state})


def measure_files(trainer: L.Trainer) -> dict[str, int]:
    """Measure the files that a run only adds to: rows of metrics.csv, bytes of samples.jsonl."""
    rows = sum(logger.count_rows() for logger in _csv_loggers(trainer))
    samples = RunFolder(trainer.default_root_dir).samples
    return {"metrics": rows, "samples": samples.stat().st_size if samples.exists() else 0}


def shorten_files(trainer: L.Trainer, lengths: dict[str, int]) -> None:
    """Give the growing files of a run the lengths that they once had."""
    for logger in _csv_loggers(trainer):
        logger.keep_rows(lengths["metrics"])
    samples = RunFolder(trainer.default_root_dir).samples
    if samples.exists() and samples.stat().st_size > lengths["samples"]:
        os.truncate(samples, lengths["samples"])


def _csv_loggers(trainer: L.Trainer) -> list[RunCSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
