"""Start a program's log, and end it with a message and an exit code.

Shared by ``train.py`` and all commands. Exit codes: 0; 2 for an error that was foreseen, with one
message ``error: ...`` on stderr; 128 plus the signal's number after a signal, as shells and
schedulers expect. Any other error keeps its traceback; ``ALIGNSUM_DEBUG=1`` shows it for all.
Imports nothing that takes long: some commands need neither torch nor transformers.
"""

import difflib
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

DEBUG = "ALIGNSUM_DEBUG"
"""Environment variable that shows the traceback of foreseen errors too."""

_CHATTY = ("absl", "datasets", "filelock", "httpx", "matplotlib")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class AlignsumError(Exception):
    """An error that its message explains: users see the message and no traceback."""


class StoppedBySignal(Exception):
    """A signal ended the run, on all ranks at the same step.

    Args:
        number: The signal's number.
        is_fit: Whether the run was a fit.
        checkpoints: The folder of its checkpoints, if known.
    """

    def __init__(self, number: int, is_fit: bool = True, checkpoints: Path | None = None) -> None:
        super().__init__(number, is_fit, checkpoints)
        self.number = number
        self.is_fit = is_fit
        self.checkpoints = checkpoints

    def __str__(self) -> str:
        """Say how to continue, given the checkpoints that exist by now."""
        remedy = "continue with --resume auto"
        if not self.is_fit:
            remedy = "repeat the command"
        elif self.checkpoints is not None and not any(self.checkpoints.glob("[!.]*.ckpt")):
            remedy = "there is no checkpoint yet; --resume auto starts again"
        return f"Stopped by {signal.Signals(self.number).name}; {remedy}"


FORESEEN: tuple[type[BaseException], ...] = (AlignsumError, ValueError, OSError, FloatingPointError)
"""Errors whose message is written for the user."""


class TerminalHandler(logging.Handler):
    """Write messages to the current ``sys.stderr``, above any progress bar and without wrapping.

    Rich replaces ``sys.stderr`` while it draws a bar, so the stream is looked up for each message.
    Of ranks other than 0 only errors are shown: all ranks report the same.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        if record.levelno < logging.ERROR and not is_first_process():
            return
        try:
            text = self.format(record)
            if (tqdm := sys.modules.get("tqdm")) is not None:
                tqdm.tqdm.write(text, file=sys.stderr)
            else:
                sys.stderr.write(text + "\n")
        except Exception:
            self.handleError(record)


def is_first_process() -> bool:
    """Return whether this process is rank 0, as its launcher has told it."""
    known = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in known if rank), "0") == "0"


class Lines(logging.Formatter):
    """Show the message, after the word "warning" or "error" where it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Lay out one message."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def start_log() -> None:
    """Show log messages on stderr, and of chatty libraries only warnings."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not any(isinstance(handler, TerminalHandler) for handler in root.handlers):
        handler = TerminalHandler()
        handler.setFormatter(Lines())
        root.addHandler(handler)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def quieten_models() -> None:
    """Hide what transformers, PEFT and Lightning report about their own use of other libraries."""
    import transformers  # imported late: it takes seconds

    transformers.logging.disable_progress_bar()
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Lightning's own, beside ours
    for module in ("lightning", "peft", "transformers"):
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)


def run(
    work: Callable[[], int | None],
    log: logging.Logger,
    stopped: str = "interrupted",
    memory_advice: str = "lower --batch_size",
    foreseen: tuple[type[BaseException], ...] = FORESEEN,
) -> int:
    """Run a command's work; turn a foreseen error into one message and an exit code.

    Args:
        work: Returns its exit code, or None for 0.
        log: Receives the message.
        stopped: Message after Ctrl-C.
        memory_advice: Settings to lower when memory runs out.
        foreseen: Errors whose message is written for the user.

    Returns:
        The exit code: see the module's docstring.
    """
    try:
        return work() or 0
    except StoppedBySignal as stop:
        log.error("%s", stop)
        return 128 + stop.number
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into SystemExit(1).
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        log.error("%s", stopped)
        return 128 + signal.SIGINT
    except (*foreseen, *out_of_memory_errors()) as error:
        if os.environ.get(DEBUG):
            raise
        log.error("%s", describe(error, memory_advice))
        return 2


def out_of_memory_errors() -> tuple[type[BaseException], ...]:
    """Return the classes of errors for lack of memory; torch's once torch is imported."""
    torch = sys.modules.get("torch")
    return (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)


def describe(error: BaseException, memory_advice: str = "lower --batch_size") -> str:
    """Return an error's message with the remedy for a full memory or a full disk."""
    if isinstance(error, out_of_memory_errors()):
        cause = str(error).partition("\n")[0]
        return f"out of memory{f' ({cause})' if cause else ''}: {memory_advice}"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return (
            f"{error}. The disk is full: make room, or choose a folder on another disk. Files "
            "written earlier are complete; continue a fit with --resume auto"
        )
    return str(error)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name closest to a mistyped one, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
