"""Lost ranks: notice that a process is gone, say which, and end the others, who would wait for it.

A rank whose peer is gone waits in a collective until the backend's timeout, half an hour by
default, and then fails with a message that names no rank. Here every rank gives a sign of life from
a thread of its own, and looks for those of the others.
"""

import logging
import os
import socket
import sys
import threading
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.distributed import DistError, TCPStore

from callbacks.signals import Stopped

log = logging.getLogger(__name__)

LOST_RANK = 75
"""Exit code of a rank that ends for the loss of another: EX_TEMPFAIL, "try again later"."""


class LifeSigns(threading.Thread):
    """Gives this rank's sign of life every so often, and ends the process when another's stays out.

    Args:
        store: Shared by all ranks; rank 0 holds it.
        rank: This rank.
        ranks: How many there are.
        patience: Seconds without a sign after which a rank is lost.
    """

    def __init__(self, store: TCPStore, rank: int, ranks: int, patience: float) -> None:
        super().__init__(name="life-signs", daemon=True)
        self.store = store
        self.rank = rank
        self.others = [other for other in range(ranks) if other != rank]
        self.patience = patience
        self._end = threading.Event()
        self._counts = dict.fromkeys(self.others, 0)
        self._seen = dict.fromkeys(self.others, time.monotonic())
        self._failed: dict[int, float] = {}
        self.is_awaited = False
        """Whether the main thread has nothing left to do but to learn which rank is lost."""
        self._names = dict.fromkeys(self.others, "")
        store.set(f"name/{rank}", f"process {os.getpid()} on {socket.gethostname()}")

    def run(self) -> None:
        """Look again and again, until told to end or a rank is lost."""
        interval, looked = self.patience / 15, time.monotonic()
        while not self._end.wait(interval):
            before, looked = looked, time.monotonic()
            if looked - before > 5 * interval:
                # This process stood still (stopped, or starved), and has seen nobody's signs.
                self._seen = dict.fromkeys(self._seen, looked)
            try:
                self._exchange()
            except (DistError, RuntimeError):
                # The store went with rank 0, whose sign stays out from now on.
                log.debug("the store of rank 0 does not answer", exc_info=True)
            if not self._end.is_set() and (reason := self._find_loss()):
                log.error("%s; rank %d ends. Go on with --resume auto", reason, self.rank)
                sys.stdout.flush()
                sys.stderr.flush()
                # The main thread waits in a collective, where no exception can reach it.
                os._exit(LOST_RANK)

    def stop(self, failure: str | None = None) -> None:
        """End the watch; say how this rank ends, so that the others do not take it for lost."""
        self._end.set()
        try:
            self.store.set(f"end/{self.rank}", failure or "done")
        except (DistError, RuntimeError):
            log.debug("the store of rank 0 does not answer", exc_info=True)

    def _exchange(self) -> None:
        """Give a sign, and read the others'."""
        self.store.add(f"sign/{self.rank}", 1)
        for other in list(self.others):
            self._names[other] = self._names[other] or self._read(f"name/{other}")
            if end := self._read(f"end/{other}"):
                if end == "done":
                    self.others.remove(other)
                else:
                    self._names[other] = end
                    self._failed.setdefault(other, time.monotonic())
            count = self.store.add(f"sign/{other}", 0)
            if count != self._counts[other]:
                self._counts[other], self._seen[other] = count, time.monotonic()

    def _read(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _find_loss(self) -> str | None:
        """Say which rank is lost, or has failed by itself a while ago."""
        now = time.monotonic()
        for other in self.others:
            grace = 0.0 if self.is_awaited else self.patience / 3
            if other in self._failed and now - self._failed[other] >= grace:
                return f"rank {other} has failed: {self._names[other]}"
            if now - self._seen[other] > self.patience:
                name = self._names[other] or "not yet known"
                return f"rank {other} is lost ({name}): no sign of life for {self.patience:g} s"
        return None


class RankWatch(Callback):
    """End all ranks when one of them is lost or has failed, with a message that names it.

    Args:
        patience: Seconds without a sign of life after which a rank is lost.

    Raises:
        ValueError: If it is not above 0.
    """

    def __init__(self, patience: float = 30.0) -> None:
        if not patience > 0:
            raise ValueError(f"ranks.patience must be above 0 seconds, got {patience}")
        self.patience = patience
        self._signs: LifeSigns | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start to watch, where there is more than one rank."""
        if trainer.world_size == 1 or self._signs is not None:
            return
        retire_observer()
        rank, ranks = trainer.global_rank, trainer.world_size
        environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        host, first = environment.main_address, rank == 0
        held = TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False) if first else None
        port = trainer.strategy.broadcast(held.port if held else 0)
        store = held or TCPStore(host, port, ranks, is_master=False, wait_for_workers=False)
        self._signs = LifeSigns(store, rank, ranks, self.patience)
        self._signs.start()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the others of a failure; where another rank's is the cause, wait to learn whose."""
        if self._signs is None or isinstance(exception, Stopped | FloatingPointError):
            return
        if is_of_a_collective(exception):
            log.error("Lost touch with another rank (%s); finding out which", exception)
            self._signs.is_awaited = True
            self._signs.join(timeout=1.5 * self.patience)
        self._signs.stop(f"{type(exception).__name__}: {exception}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the watch."""
        if self._signs is not None:
            self._signs.stop()
            self._signs = None


def is_of_a_collective(exception: BaseException) -> bool:
    """Whether an error came from talking to other ranks."""
    text = str(exception)
    return isinstance(exception, DistError) or (
        isinstance(exception, RuntimeError) and ("gloo" in text or "NCCL" in text)
    )


def retire_observer() -> None:
    """End Lightning's own watch over the processes that rank 0 has started.

    It kills rank 0, be it in the middle of a checkpoint, five seconds after any of them has ended
    with a code that is not 0, and so it would when a signal ends them all.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined] # then it has nothing to do
