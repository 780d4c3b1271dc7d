"""What the commands say, and the codes that they end with."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.exits import Lines, run

ROOT = Path(__file__).parent.parent
LOG = logging.getLogger("tests.command_line")


def fail_with(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_a_work_gives_its_code() -> None:
    assert run(lambda: None, LOG) == 0
    assert run(lambda: 1, LOG) == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such run"), 2, "no such run"),
        (FileNotFoundError(2, "No such file", "runs/x"), 2, "No such file: 'runs/x'"),
        (FloatingPointError("the loss is nan"), 2, "the loss is nan"),
        (KeyboardInterrupt(), 130, "come again"),
    ],
)
def test_what_was_foreseen_is_said_and_has_a_code(
    error: BaseException, code: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(fail_with(error), LOG, "come again") == code
    (record,) = caplog.records
    assert said in record.getMessage()
    assert record.levelname == "ERROR"


def test_what_nobody_foresaw_and_what_is_debugged_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError):
        run(fail_with(RuntimeError("a bug")), LOG)
    monkeypatch.setenv("ALIGNSUM_DEBUG", "1")
    with pytest.raises(ValueError, match="no such run"):
        run(fail_with(ValueError("no such run")), LOG)


def test_only_warnings_and_errors_have_their_level_before_them() -> None:
    shown = [
        Lines().format(logging.LogRecord("x", level, "", 0, "%d rows", (3,), None))
        for level in (logging.INFO, logging.WARNING, logging.ERROR)
    ]
    assert shown == ["3 rows", "warning: 3 rows", "error: 3 rows"]


@pytest.mark.parametrize("program", ["report", "feedback", "sweep"])
def test_what_needs_no_model_starts_without_torch(program: str) -> None:
    check = f"import sys, {program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
