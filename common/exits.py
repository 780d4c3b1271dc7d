"""What the command lines have around their work: messages on the terminal, and an exit code.

Nothing is imported here that takes long: some commands need neither torch nor transformers.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable

FORESEEN = (ValueError, OSError, FloatingPointError)
"""What ends a command with a message in place of a traceback."""

_NOISY = ("httpx", "filelock", "matplotlib", "datasets", "absl")


class Lines(logging.Formatter):
    """Messages as they are, with the word "warning" or "error" before those that are one."""

    def format(self, record: logging.LogRecord) -> str:
        """Lay out a message."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def start_log(handler: logging.Handler | None = None) -> None:
    """Show messages on the terminal, as stderr, and only warnings of chatty libraries.

    Args:
        handler: Shows them in place of plain lines.
    """
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def quieten_models() -> None:
    """Leave out what transformers and PEFT show of every model that is loaded."""
    import transformers  # not before: it takes seconds, and not every command needs it

    transformers.logging.disable_progress_bar()  # a bar for each file, drawn over our own
    # PEFT's own use of transformers, not ours.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")


def run(work: Callable[[], int | None], log: logging.Logger, stopped: str = "interrupted") -> int:
    """Do a command's work, and turn what goes wrong into one message and an exit code.

    With ALIGNSUM_DEBUG set an error goes on with its traceback.

    Args:
        work: Gives its exit code; None is 0.
        log: Where messages go.
        stopped: What to say where it was interrupted.

    Returns:
        Exit code: that of the work; 2 where something cannot be had or done; 130 where it was
        interrupted.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        log.error("%s", stopped)
        return 130
    except FORESEEN as error:
        if os.environ.get("ALIGNSUM_DEBUG"):
            raise
        log.error("%s", error)
        return 2
