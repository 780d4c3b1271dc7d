"""Start ranks as torchrun does, but by forking, which saves the imports."""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def run_ranks(work: Callable[[], None], log: Path, ranks: int = 2, limit: float = 100) -> list[int]:
    """Fork ranks with the environment variables of torchrun, and run work on each.

    Args:
        work: What each rank runs.
        log: Folder for the output of rank N: ``rankN.log``.
        ranks: Number of ranks.
        limit: Seconds after which the remaining ranks are killed.

    Returns:
        Exit codes; negative for a signal.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [os.fork() or _be_rank(rank, ranks, port, work, log) for rank in range(ranks)]
    codes: dict[int, int] = {}
    end = time.monotonic() + limit
    while len(codes) < ranks:
        if time.monotonic() > end:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return [codes[child] for child in children]


def last_words(log: Path) -> str:
    """Return the end of each rank's log in a folder."""
    return "".join(file.read_text()[-3000:] for file in sorted(log.glob("rank*.log")))


def _be_rank(rank: int, ranks: int, port: str, work: Callable[[], None], log: Path) -> int:
    code: object = 1
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE":
            str(ranks), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        file = os.open(log / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest has replaced both, and the handlers of the log.
        logging.getLogger().handlers.clear()
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
