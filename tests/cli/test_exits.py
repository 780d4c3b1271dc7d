"""Messages and exit codes shared by train.py and all commands."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignsum.__main__ import COMMANDS
from common.exits import Lines, StoppedBySignal, TerminalHandler, run, suggest
from lightning_modules.policies.gate import GateError

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("tests.exits")


def fail_with(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_the_exit_code_of_the_work_is_kept() -> None:
    assert run(lambda: None, LOG) == 0
    assert run(lambda: 1, LOG) == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("no such run"), 2, "no such run"),
        (GateError("KL is 0.3"), 2, "KL is 0.3"),
        (FileNotFoundError(2, "No such file", "runs/x"), 2, "No such file: 'runs/x'"),
        (FloatingPointError("the loss is nan"), 2, "the loss is nan"),
        (OSError(errno.ENOSPC, "No space", "runs/x"), 2, "The disk is full"),
        (MemoryError(), 2, "out of memory: lower data.batch_size"),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB\nmore"), 2, "lower data.batch_size"),
        (KeyboardInterrupt(), 130, "repeat the command"),
        (StoppedBySignal(signal.SIGTERM), 143, "SIGTERM; continue with --resume auto"),
    ],
)
def test_foreseen_errors_become_a_message_and_a_code(
    error: BaseException, code: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(fail_with(error), LOG, "repeat the command", "lower data.batch_size") == code
    (record,) = caplog.records
    assert words in record.getMessage()
    assert record.levelname == "ERROR"


def test_unforeseen_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError):
        run(fail_with(RuntimeError("a bug")), LOG)
    monkeypatch.setenv("ALIGNSUM_DEBUG", "1")
    with pytest.raises(ValueError, match="no such run"):
        run(fail_with(ValueError("no such run")), LOG)


def test_a_stopped_run_names_what_can_be_continued(tmp_path: Path) -> None:
    stop = StoppedBySignal(signal.SIGINT, checkpoints=tmp_path)
    assert "no checkpoint yet" in str(stop)
    (tmp_path / "last.ckpt").touch()
    assert "continue with --resume auto" in str(stop)
    assert "--resume" not in str(StoppedBySignal(signal.SIGINT, is_fit=False))


def test_warnings_and_errors_begin_with_their_level() -> None:
    shown = [
        Lines().format(logging.LogRecord("x", level, "", 0, "%d rows", (3,), None))
        for level in (logging.INFO, logging.WARNING, logging.ERROR)
    ]
    assert shown == ["3 rows", "warning: 3 rows", "error: 3 rows"]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [({}, "a\nb\n"), ({"RANK": "0", "LOCAL_RANK": "1"}, "a\nb\n"), ({"LOCAL_RANK": "1"}, "b\n")],
)
def test_other_ranks_show_errors_only(
    rank: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    for text, level in (("a", logging.WARNING), ("b", logging.ERROR)):
        TerminalHandler().emit(logging.LogRecord("x", level, "", 0, text, (), None))
    assert capsys.readouterr().err == expected


def test_suggest_names_the_closest_option_or_none() -> None:
    assert "batch_size" in suggest("bacth_size", ["batch_size", "source"])
    assert suggest("zzz", ["batch_size", "source"]) == ""


SLOW_TO_IMPORT = ("torch", "lightning", "transformers", "matplotlib", "sklearn", "datasets")


@pytest.mark.parametrize("command", ["train", "", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    """Instead of a timing: these packages are what makes a start slow."""
    if command == "train":
        call = "import train; main = lambda: train.main(['--help'])"
    else:
        arguments = [command, "--help"] if command else ["--help"]
        call = f"from alignsum import __main__ as m; main = lambda: m.main({arguments!r})"
    program = (
        f"{call}\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"import sys; print('loaded', *[m for m in {SLOW_TO_IMPORT} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    help_text, _, loaded = done.stdout.rpartition("loaded")
    assert "usage" in help_text
    assert loaded.strip() == ""


def test_waiting_threads_do_not_spin_unless_the_user_wants_it() -> None:
    for module in ("train", "alignsum.__main__"):
        for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
            environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
            environment |= {"OMP_WAIT_POLICY": given} if given else {}
            check = (
                f"import {module}, os, sys; assert 'torch' not in sys.modules; "
                f"assert os.environ['OMP_WAIT_POLICY'] == {expected!r}"
            )
            subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=environment, check=True)
