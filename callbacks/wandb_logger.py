"""Weights & Biases that may drop out: the training goes on, and what was missed is sent later."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from common.versions import redact, redact_arguments

log = logging.getLogger(__name__)

GONE = (OSError, wandb.Error)
"""What W&B's client raises when its service process or its connection is gone."""


class RunWandbLogger(WandbLogger):
    """Lightning's logger, which a lost connection cannot bring down, nor the run with it.

    W&B's own service process keeps what it gets on the disk and sends it when the network is back.
    Where that process itself is gone (killed for memory, for one) what is logged waits here, a new
    one is started every ``retry_seconds``, and gets all of it in order, under the same run id. All
    the while ``metrics.csv`` has everything.

    Tokens on the command line, which W&B records, and in the run's notes are not shown to it.

    Args:
        retry_seconds: Time between two attempts to get W&B back.
        **kwargs: See Lightning's ``WandbLogger``.
    """

    def __init__(self, retry_seconds: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("name", "group", "notes"):
            if isinstance(text := self._wandb_init.get(name), str):
                self._wandb_init[name] = redact(text)
        self.retry_seconds = retry_seconds
        self._waiting: deque[tuple[dict[str, Any], int | None]] = deque()
        self._tried = 0.0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; begins it at first."""
        with argv_without_secrets():
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send metrics, or keep them until they can be sent."""
        self._waiting.append((dict(metrics), step))
        if len(self._waiting) == 1 or time.monotonic() - self._tried > self.retry_seconds:
            self._deliver(anew=len(self._waiting) > 1)

    def _deliver(self, anew: bool) -> None:
        """Send all that waits, to a service process that is started anew where the old one died."""
        first = len(self._waiting) == 1
        try:
            if anew:
                self._start_anew()
            while self._waiting:
                super().log_metrics(*self._waiting[0])
                self._waiting.popleft()
        except GONE as error:
            self._tried = time.monotonic()
            if first:
                log.warning(
                    "W&B has dropped out (%s); the training goes on, metrics.csv has everything, "
                    "and W&B gets what it missed when it is back", error,
                )  # fmt: skip
        else:
            if anew:
                log.info("W&B is back, and has what it missed")

    def _start_anew(self) -> None:
        """Begin another session of the same run."""
        try:
            wandb.teardown()
        except GONE as error:
            log.debug("the old session of W&B could not be ended: %s", error)
        before: Any = self._experiment
        settings = self._wandb_init | {"id": before.id, "resume": "allow", "reinit": "create_new"}
        with argv_without_secrets():
            self._experiment = wandb.init(**settings)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what still waits; say so where it cannot be sent."""
        if self._waiting:
            self._deliver(anew=True)
        if self._waiting:
            log.warning("W&B did not come back; %d entries did not reach it", len(self._waiting))
            return
        super().finalize(status)


@contextmanager
def argv_without_secrets() -> Iterator[None]:
    """Hide the tokens on the command line from who reads it meanwhile."""
    before = sys.argv
    sys.argv = redact_arguments(before)
    try:
        yield
    finally:
        sys.argv = before
