"""Programs of this folder in processes of their own."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def call(program: str, *arguments: str) -> int:
    """Run a program, give its exit code, and let it end in its own way.

    Ctrl-C reaches both processes: the program saves its checkpoint, then we go. Where we are told
    to exit (see sweep.py on SIGTERM) it is told so too.
    """
    process = subprocess.Popen([sys.executable, str(_ROOT / program), *arguments])  # noqa: S603
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise


def find_parse_errors(commands: Sequence[Sequence[str]]) -> list[str]:
    """Let train.py parse some command lines without running them, all in one other process.

    Returns:
        For each what is wrong with it; empty where nothing is.
    """
    program = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n"
        "import json\n"
        "from sweeping.processes import parse_here\n"
        "sys.stdout.write('\\n' + json.dumps(parse_here(json.load(sys.stdin))))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        input=json.dumps(commands), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def parse_here(commands: Sequence[Sequence[str]]) -> list[str]:
    """Do the work of :func:`find_parse_errors` in this process."""
    import train  # takes seconds to import, and a sweep itself has no use for it

    errors = []
    for command in commands:
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                train.main([*command, "--print_config"])
            except SystemExit as stop:
                wrong = bool(stop.code)
        text = said.getvalue()
        errors.append((text.partition("error:")[2] or text).strip() if wrong else "")
    return errors
