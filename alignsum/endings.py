"""How train.py ends: what went wrong in words, and an exit code that says what kind it was.

The other commands, which know neither ranks nor schedulers, end by :func:`command_line.run`.
"""

import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from callbacks.signals import Stopped
from common import exits as command_line
from lightning_modules.ppo.invariants import GateError

FORESEEN = (*command_line.FORESEEN, GateError, MisconfigurationException)
"""What ends a run with a message in place of a traceback."""

LESS_MEMORY = (
    "To need less: halve --data.batch_size and double --trainer.accumulate_grad_batches (the same "
    "result; in PPO halve --model.ppo.microbatch_size), --model.gradient_checkpointing true, "
    "--trainer.precision bf16-mixed, or train a LoRA (configs/lora.yaml)"
)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def in_words() -> Iterator[None]:
    """End the process with a message and an exit code where an error was foreseen.

    2 is an error, 128 and the signal's number a signal, 75 the loss of another rank. Errors that
    nobody foresaw go on as they are.
    """
    try:
        yield
    except (Stopped, KeyboardInterrupt) as stop:
        stop_by_signal(stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT))
    except SystemExit as stop:
        # Lightning's own end for Ctrl-C, with code 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            stop_by_signal(Stopped(signal.SIGINT))
        raise
    except FORESEEN as error:
        fail(shorten(str(error)) + advise_on_room(error))
    except ProcessExitedException as error:
        fail(f"{error}; go on with --resume auto")
    except ProcessRaisedException as error:
        end_as_rank(str(error).strip().rpartition("\n")[2], error.error_index)
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        fail(f"out of memory: {error}. {LESS_MEMORY}")


def fail(message: str, code: int = 2) -> NoReturn:
    """Print what went wrong, and end; where asked for, go on with the error and its traceback."""
    if os.environ.get("ALIGNSUM_DEBUG"):
        raise  # the error at hand
    # No markup: the message may hold text from files, and brackets in it are meant.
    # No wrapping either: a path broken over two lines cannot be copied.
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"error: {message}", markup=False, highlight=False, style="red")
    sys.exit(code)


def stop_by_signal(stop: Stopped) -> NoReturn:
    """End with the code that schedulers know."""
    logging.getLogger(__name__).error("%s; %s", stop, stop.advise())
    sys.exit(stop.exit_code)


def end_as_rank(last_line: str, rank: int) -> None:
    """End as a rank did that this process had forked, if its error was foreseen."""
    kind, _, message = last_line.partition(": ")
    name = kind.rpartition(".")[2]
    if name == Stopped.__name__ and (found := re.search(r"by (SIG\w+)", message)):
        stop_by_signal(Stopped(signal.Signals[found[1]]))
    if name in {error.__name__ for error in FORESEEN}:
        fail(f"rank {rank}: {message}")


def advise_on_room(error: BaseException) -> str:
    """Say what to do where an error is one of a full disk."""
    if getattr(error, "errno", None) not in NO_ROOM:
        return ""
    return (
        ". The disk is full: make room, or name a run folder on another one with --run_dir. What "
        "was written before is whole; a fit goes on with --resume auto"
    )


def shorten(message: str) -> str:
    """Leave out what jsonargparse wraps around a constructor's own words."""
    noise = ("Does not validate against any", "Subtypes: ", "Errors:", "- Expected a <class 'None")
    lines = message.partition("\nGiven value type:")[0].splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith(noise))
